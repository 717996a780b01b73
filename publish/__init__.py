"""For readers without a kernel: a paper to print, a site to browse, and notebooks that open on Colab."""
