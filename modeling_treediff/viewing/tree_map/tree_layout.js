"use strict";

const WORD_SHAPE = 2;  // width of a token's area divided by its height, since words are wide

/* A tree's nodes and where they lie. Nodes of depth k are numbered 0.. in the order of their paths, so the children of
   a node are consecutive nodes of depth k + 1, and the tokens below it consecutive leaves. */
class Tree {
  constructor(data) {
    Object.assign(this, data);
    this.depth = data.children.length;
    this.firstChild = data.children.map((numbers) => {
      const first = new Int32Array(numbers.length + 1);
      numbers.forEach((number, node) => { first[node + 1] = first[node] + number; });
      return first;
    });
    const leaves = data.ids.length;
    this.firstLeaf = [];
    this.firstLeaf[this.depth] = Int32Array.from({ length: leaves + 1 }, (_, leaf) => leaf);
    for (let k = this.depth - 1; k >= 0; k--) {
      this.firstLeaf[k] = this.firstChild[k].map((child) => this.firstLeaf[k + 1][child]);
    }
    this.rect = this.firstLeaf.map((first) => new Float64Array(4 * (first.length - 1)));  // x, y, width, height
    this.placed = this.firstChild.map((first) => new Uint8Array(first.length - 1));
    this.words = new Map();
  }

  get size() { return this.ids.length; }

  leavesOf(k, node) { return [this.firstLeaf[k][node], this.firstLeaf[k][node + 1]]; }

  ancestor(k, leaf) {  // the node of depth k above a leaf, by bisection
    const first = this.firstLeaf[k];
    let low = 0, high = first.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (first[middle] <= leaf) low = middle; else high = middle;
    }
    return low;
  }

  path(k, node) {  // the slots from the root
    const leaf = this.firstLeaf[k][node];
    return Array.from({ length: k }, (_, depth) => this.slots[depth][this.ancestor(depth + 1, leaf)]);
  }

  leading(k, node, number) {  // a node's most frequent tokens; without counts its representative, then tree order
    const key = k * 1e9 + node;
    let found = this.words.get(key);
    if (!found) {
      const [start, end] = this.leavesOf(k, node);
      const shown = k < this.depth ? this.representative[k][node] : start;
      found = [];
      if (this.counts) {
        for (let leaf = start; leaf < end; leaf++) found.push(leaf);
        found.sort((a, b) => this.counts[b] - this.counts[a] || (b === shown) - (a === shown) || a - b);
      } else {
        for (let leaf = start; leaf < end && found.length < 16; leaf++) if (leaf !== shown) found.push(leaf);
        found.unshift(shown);
      }
      found = found.slice(0, 16);
      this.words.set(key, found);
    }
    return found.slice(0, number).map((leaf) => this.names[leaf]);
  }

  setArea(width, height) {
    this.rect[0].set([0, 0, width, height]);
    this.placed.forEach((flags) => flags.fill(0));
  }

  /* Place a node's children once they are wanted. A strip at the top is left for the node's name. */
  place(k, node) {
    if (this.placed[k][node]) return;
    this.placed[k][node] = 1;
    let [x, y, width, height] = this.rect[k].subarray(4 * node, 4 * node + 4);
    if (k > 0) {
      const margin = 0.03 * Math.min(width, height) / (this.depth - 1), strip = 0.07 * height / (this.depth - 1);
      x += margin; y += strip; width -= 2 * margin; height -= strip + margin;
    }
    const first = this.firstChild[k][node], end = this.firstChild[k][node + 1];
    const wide = k + 1 === this.depth ? WORD_SHAPE : 1;
    squarify(this.firstLeaf[k + 1], first, end, this.rect[k + 1], x, y, width, height, wide);
  }
}

/* Lay out nodes first..end-1 in rows, in the given order; a node's weight is its leaves, its area nearly `wide` times
   as wide as high. */
function squarify(firstLeaf, first, end, rect, x, y, width, height, wide) {
  x /= wide; width /= wide;  // squares here, stretched when they are written
  let start = first;
  while (start < end) {
    const perLeaf = (width * height) / (firstLeaf[end] - firstLeaf[start]);
    const side = Math.min(width, height);
    let stop = start, worst = Infinity, smallest = Infinity, largest = 0;
    while (stop < end) {
      const area = (firstLeaf[stop + 1] - firstLeaf[stop]) * perLeaf;
      smallest = Math.min(smallest, area); largest = Math.max(largest, area);
      const thick = (firstLeaf[stop + 1] - firstLeaf[start]) * perLeaf / side;
      const ratio = Math.max(thick * thick / smallest, largest / (thick * thick));
      if (ratio > worst) break;
      worst = ratio; stop++;
    }
    const across = width >= height;  // the row stands at the left, else at the top
    const thick = (firstLeaf[stop] - firstLeaf[start]) * perLeaf / side;
    let along = across ? y : x;
    for (let node = start; node < stop; node++) {
      const long = (firstLeaf[node + 1] - firstLeaf[node]) * perLeaf / thick;
      const [left, top, right, down] = across ? [x, along, thick, long] : [along, y, long, thick];
      rect.set([left * wide, top, right * wide, down], 4 * node);
      along += long;
    }
    if (across) { x += thick; width -= thick; } else { y += thick; height -= thick; }
    start = stop;
  }
}
