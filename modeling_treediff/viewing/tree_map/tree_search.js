/* Search: exact names first, then names that begin with the query, then names that hold it. */
const MOST_FOUND = 60;
const bare = tree.names.map((name) => name.replace(/^(▁|##)(?=.)/u, "").toLowerCase());

function find(text) {
  const query = text.replaceAll(" ", "▁"), plain = query.replace(/^(▁|##)(?=.)/u, "").toLowerCase();
  if (!query) return [];
  const ranks = [[], [], [], [], []];
  const id = /^#\d+$/.test(query) ? tree.ids.indexOf(Number(query.slice(1))) : -1;
  if (id >= 0) ranks[0].push(id);
  for (let leaf = 0; leaf < tree.size; leaf++) {
    if (tree.names[leaf] === query) ranks[0].push(leaf);
    else if (bare[leaf] === plain) ranks[query === plain ? 1 : 2].push(leaf);
    else if (bare[leaf].startsWith(plain)) ranks[3].push(leaf);
    else if (ranks[4].length < MOST_FOUND && bare[leaf].includes(plain)) ranks[4].push(leaf);
  }
  const rarest = (leaf) => (tree.counts ? -tree.counts[leaf] : tree.ids[leaf]);
  return ranks.flatMap((leaves) => leaves.sort((a, b) => rarest(a) - rarest(b))).slice(0, MOST_FOUND);
}

let found = [], current = -1;
const searchBox = byId("search"), results = byId("results");

function showFound() {
  found = find(searchBox.value);
  results.replaceChildren(...found.map((leaf, index) => {
    const item = element("li", null, { role: "option", id: `result-${index}`, "aria-selected": "false" });
    item.append(element("b", tree.names[leaf]), element("span", `id ${tree.ids[leaf]} · ${slotsText(tree.depth, leaf)}`));
    item.onpointerdown = (event) => { event.preventDefault(); choose(index); };
    return item;
  }));
  if (searchBox.value && !found.length) results.append(element("li", "no token has this name"));
  openResults(searchBox.value !== "");
  mark(found.length ? 0 : -1);
}

function openResults(open) {
  results.hidden = !open;
  searchBox.setAttribute("aria-expanded", String(open));
}

function mark(index) {
  current = index;
  [...results.children].forEach((item, at) => item.setAttribute("aria-selected", String(at === index)));
  if (index < 0) { searchBox.removeAttribute("aria-activedescendant"); return; }
  searchBox.setAttribute("aria-activedescendant", `result-${index}`);
  results.children[index].scrollIntoView({ block: "nearest" });
}

function choose(index) {
  openResults(false);
  select(found[index]);
}

searchBox.addEventListener("input", showFound);
searchBox.addEventListener("focus", () => openResults(searchBox.value !== "" && found.length > 0));
searchBox.addEventListener("blur", () => openResults(false));
searchBox.addEventListener("keydown", (event) => {
  const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (move && found.length) { event.preventDefault(); mark((current + move + found.length) % found.length); }
  else if (event.key === "Enter" && current >= 0) choose(current);
  else if (event.key === "Escape") { if (results.hidden) canvas.focus(); openResults(false); }
});
