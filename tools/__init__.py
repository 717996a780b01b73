"""What surrounds the papers: your own scan, data sets, other tools, speed, the site and the PDF."""
