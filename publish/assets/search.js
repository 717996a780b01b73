// Finds the sections that hold every word of the query; SECTIONS is in index.js, which is made with the site.
const query = document.getElementById("query"), found = document.getElementById("found");

function around(text, word) {
  const at = Math.max(0, text.toLowerCase().indexOf(word) - 60);
  return (at ? "… " : "") + text.slice(at, at + 160) + (at + 160 < text.length ? " …" : "");
}

function hit(section, word) {
  const item = document.createElement("li"), link = document.createElement("a"), words = document.createElement("p");
  link.href = section.url;
  link.textContent = section.page === section.title ? section.page : section.page + ": " + section.title;
  words.textContent = around(section.text, word);
  item.append(link, words);
  return item;
}

function search() {
  const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
  const holds = section => words.every(word => (section.page + " " + section.title + " " + section.text).toLowerCase().includes(word));
  const titled = section => words.filter(word => section.title.toLowerCase().includes(word)).length;
  const hits = words.length ? SECTIONS.filter(holds).sort((one, other) => titled(other) - titled(one)).slice(0, 12) : [];
  found.replaceChildren(...hits.map(section => hit(section, words[0])));
  if (words.length && !hits.length) found.textContent = "Nothing found.";
}

query.addEventListener("input", search);
document.getElementById("search").addEventListener("submit", event => { event.preventDefault(); search(); });
