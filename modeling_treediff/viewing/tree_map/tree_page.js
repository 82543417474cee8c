const byId = (id) => document.getElementById(id);
const tree = new Tree(JSON.parse(byId("data").textContent));
const view = new TreeView(byId("canvas"), tree);
const canvas = view.canvas;
const number = new Intl.NumberFormat("en");

function element(tag, text, attributes = {}) {  // names become text, never markup
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const slotsText = (k, node) => (k ? tree.path(k, node).join(" › ") : "root");
const nodeText = (k, node) => (k === tree.depth ? tree.names[node] : tree.leading(k, node, 4).join(" "));

/* ---- colours and legend ---- */

const largest = tree.counts ? tree.counts.reduce((a, b) => Math.max(a, b), 1) : 1;
const COLOURS = {
  kind: (leaf, value) => value(`--kind-${tree.kinds[leaf]}`),
  cluster: (leaf, value) => {
    const cluster = tree.ancestor(1, leaf);
    return `hsl(${Math.round(cluster * 137.5) % 360} ${value("--saturation")} ${value("--lightness")})`;
  },
  count: (leaf, value) => {
    const part = Math.round(20 * Math.log1p(tree.counts[leaf]) / Math.log1p(largest)) * 5;
    return `color-mix(in srgb, ${value("--many")} ${part}%, ${value("--few")})`;
  },
};
const legendNumbers = tree.kind_names.map((_, kind) => (tree.kinds || []).filter((one) => one === kind).length);

function setColour(mode) {
  view.colour = COLOURS[mode];
  view.shown = null;
  byId("legend").replaceChildren();
  if (mode === "kind") tree.kind_names.forEach((name, kind) => legendNumbers[kind] && addLegend(name, kind));
  view.recolour();
}

function addLegend(name, kind) {
  const button = element("button", null, { "aria-pressed": "false" });
  button.append(element("i", "", { style: `background: var(--kind-${kind})` }), element("b", name, { style: "font: inherit" }),
    element("span", number.format(legendNumbers[kind])));
  button.onclick = () => {
    const on = button.getAttribute("aria-pressed") === "false";
    for (const other of byId("legend").children) other.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(on));
    view.shown = on ? (leaf) => tree.kinds[leaf] === kind : null;
    view.recolour();
  };
  byId("legend").append(button);
}

/* ---- where we are, what is selected, what is under the pointer ---- */

let crumbsShown = "";
view.onDraw = () => {
  const trail = [[0, 0]];
  let [k, node] = view.pick(view.width / 2, view.height / 2);
  const leaf = tree.firstLeaf[k][node];
  for (let depth = 1; depth <= k && depth < tree.depth; depth++) {
    const at = tree.ancestor(depth, leaf), [left, top, right, bottom] = view.onScreen(depth, at);
    if (Math.max((right - left) / view.width, (bottom - top) / view.height) > 0.5) trail.push([depth, at]);
  }
  if (trail.join() === crumbsShown) return;
  crumbsShown = trail.join();
  byId("crumbs").replaceChildren(...crumbButtons(trail));
};

function crumbButtons(trail) {
  return trail.flatMap(([k, node], index) => {
    const [start, end] = tree.leavesOf(k, node);
    const name = k === tree.depth ? tree.names[node]
      : k ? `${tree.path(k, node).at(-1)}: ${nodeText(k, node)} … (${number.format(end - start)})` : `root (${number.format(tree.size)} tokens)`;
    const button = element("button", name);
    button.onclick = () => view.zoomTo(k, node);
    return index ? [element("span", "›"), button] : [button];
  });
}

function select(leaf, zoom = true) {
  view.selected = leaf;
  const trail = Array.from({ length: tree.depth + 1 }, (_, k) => [k, tree.ancestor(k, leaf)]);
  byId("selected").replaceChildren(element("b", tree.names[leaf]), element("span", ` ${factsText(leaf)}: `), ...crumbButtons(trail));
  if (zoom) view.zoomTo(tree.depth - 1, tree.ancestor(tree.depth - 1, leaf));
  view.redraw();
}

function factsText(leaf) {
  const count = tree.counts ? `, ${number.format(tree.counts[leaf])} in the text` : "";
  const kind = tree.kinds ? `, ${tree.kind_names[tree.kinds[leaf]]}` : "";
  return `id ${tree.ids[leaf]}, path ${slotsText(tree.depth, leaf)}${kind}${count}`;
}

function showTip(event) {
  const [x, y] = place(event), [k, node] = view.pick(x, y), tip = byId("tip");
  tip.hidden = k === 0;
  if (k === 0) return;
  const inner = Math.min(k, tree.depth - 1);
  const about = inner ? tree.ancestor(inner, tree.firstLeaf[k][node]) : 0, [start, end] = tree.leavesOf(inner, about);
  tip.replaceChildren();
  if (k === tree.depth) tip.append(element("b", tree.names[node]), element("div", factsText(node)));
  if (inner) {
    tip.append(element("div", `node ${slotsText(inner, about)}, ${number.format(end - start)} tokens: ${tree.leading(inner, about, 10).join(" ")}`));
  }
  const left = event.offsetX + 14, top = event.offsetY + 18, box = byId("picture");
  tip.style.left = `${Math.max(4, Math.min(left, box.clientWidth - tip.offsetWidth - 6))}px`;
  tip.style.top = `${top + tip.offsetHeight > box.clientHeight ? Math.max(4, event.offsetY - tip.offsetHeight - 10) : top}px`;
}

/* ---- pointer, wheel, keyboard ---- */

const place = (event) => [event.offsetX * view.ratio, event.offsetY * view.ratio];
const pointers = new Map();
let travelled = 0;

canvas.addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, place(event));
  if (pointers.size === 1) travelled = 0;
  cancelAnimationFrame(view.flight);
  byId("tip").hidden = true;
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId), now = place(event);
  if (!before) { showTip(event); return; }
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
  pointers.set(event.pointerId, now);
  byId("tip").hidden = true;
  canvas.classList.add("dragging");
  if (other) {  // two fingers: the distance zooms
    const grown = Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1]));
    view.zoomAt((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, grown);
  }
  const share = other ? 2 : 1;
  view.moveTo(view.x - (now[0] - before[0]) / view.scale / share, view.y - (now[1] - before[1]) / view.scale / share);
});
function release(event) {
  const clicked = pointers.delete(event.pointerId) && event.type === "pointerup" && travelled < 6 * view.ratio && !pointers.size;
  canvas.classList.toggle("dragging", pointers.size > 0);
  if (clicked) enter(...place(event));
}
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("pointerleave", () => { byId("tip").hidden = true; });

/* Go into the outermost node at a point that is not large yet; a token is selected. */
function enter(x, y) {
  const [k, node] = view.pick(x, y), leaf = tree.firstLeaf[k][node];
  for (let depth = 1; depth < tree.depth && depth <= k; depth++) {
    const at = tree.ancestor(depth, leaf), [left, top, right, bottom] = view.onScreen(depth, at);
    if (Math.max((right - left) / view.width, (bottom - top) / view.height) < 0.7) { view.zoomTo(depth, at); return; }
  }
  if (k === tree.depth) select(leaf, false);
}

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  cancelAnimationFrame(view.flight);
  const lines = event.deltaMode === 1 ? 20 : 1;
  view.zoomAt(...place(event), Math.exp(-0.002 * Math.max(-300, Math.min(300, event.deltaY * lines))));
  byId("tip").hidden = true;
}, { passive: false });

const zoomBy = (factor) => view.zoomAt(view.width / 2, view.height / 2, factor);
const step = (x, y) => view.moveTo(view.x + (x * view.width) / 8 / view.scale, view.y + (y * view.height) / 8 / view.scale);
const KEYS = {
  "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: () => view.zoomTo(0, 0),
  ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
  Enter: () => enter(view.width / 2, view.height / 2),
};
document.addEventListener("keydown", (event) => {
  byId("tip").hidden = true;
  if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
  const onCanvas = event.target === canvas, action = KEYS[event.key];
  if (event.key === "/") { event.preventDefault(); byId("search").focus(); byId("search").select(); }
  else if (action && (onCanvas || /^[+=\-0]$/.test(event.key))) { event.preventDefault(); action(); }
});
byId("zoom-in").onclick = () => zoomBy(1.5);
byId("zoom-out").onclick = () => zoomBy(1 / 1.5);
byId("zoom-all").onclick = () => view.zoomTo(0, 0);

/* ---- start ---- */

const modes = [tree.kinds && "kind", "cluster", tree.counts && "count"].filter(Boolean);
byId("colour").append(...modes.map((mode) => element("option", `by ${mode}`, { value: mode })));
byId("colour").onchange = (event) => setColour(event.target.value);
canvas.setAttribute("aria-label", `Treemap of ${number.format(tree.size)} tokens in a tree of depth ${tree.depth}`);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => view.recolour());
new ResizeObserver(() => view.resize()).observe(byId("picture"));
setColour(modes[0]);
