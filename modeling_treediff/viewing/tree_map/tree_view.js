/* The picture. Cells are written into a pixel buffer (50,000 of them take milliseconds, as canvas rectangles they
   would not), text is drawn over it; only what is in view and large enough is visited. */
class TreeView {
  constructor(canvas, tree) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.tree = tree;
    this.colour = () => "#888888";  // of a leaf
    this.shown = null;  // a test that says which leaves are not faded
    this.selected = null;  // a leaf
    this.onDraw = () => {};
    this.pending = false;
    this.resize();
  }

  resize() {
    const box = this.canvas.getBoundingClientRect(), ratio = Math.min(2, window.devicePixelRatio || 1);
    this.ratio = ratio;
    this.width = Math.max(1, Math.round(box.width * ratio));
    this.height = Math.max(1, Math.round(box.height * ratio));
    this.canvas.width = this.width; this.canvas.height = this.height;
    this.image = this.context.createImageData(this.width, this.height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    this.tree.setArea(this.width, this.height);
    this.maxScale = Math.max(1, Math.sqrt(this.tree.size) * 0.8);
    this.x = 0; this.y = 0; this.scale = 1;  // the world's point in the upper left corner; pixels per unit
    this.redraw();
  }

  recolour() {  // colours per leaf, looked up once
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(name).trim();
    this.text = value("--text"); this.accent = value("--accent"); this.font = value("--mono");
    this.back = pixel(value("--gap")); this.frame = pixel(value("--frame"));
    const faded = pixel(value("--panel")), known = new Map();
    this.cells = new Uint32Array(this.tree.size);
    for (let leaf = 0; leaf < this.tree.size; leaf++) {
      const css = this.colour(leaf, value);
      if (!known.has(css)) known.set(css, pixel(css));
      this.cells[leaf] = this.shown && !this.shown(leaf) ? faded : known.get(css);
    }
    this.redraw();
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.draw(); });
  }

  /* ---- drawing ---- */

  draw() {
    if (!this.cells) return;
    this.labels = [];
    this.pixels.fill(this.back);
    this.visit(0, 0);
    this.context.putImageData(this.image, 0, 0);
    this.drawLabels();
    this.drawSelected();
    this.onDraw();
  }

  onScreen(k, node) {
    const rect = this.tree.rect[k], at = 4 * node;
    const left = (rect[at] - this.x) * this.scale, top = (rect[at + 1] - this.y) * this.scale;
    return [left, top, left + rect[at + 2] * this.scale, top + rect[at + 3] * this.scale];
  }

  visit(k, node) {
    let [left, top, right, bottom] = this.onScreen(k, node);
    if (right < 0 || bottom < 0 || left > this.width || top > this.height) return;
    left = Math.round(left); top = Math.round(top); right = Math.round(right); bottom = Math.round(bottom);
    const width = right - left, height = bottom - top, small = Math.min(width, height);
    if (k === this.tree.depth || small < 3) {
      const gap = small >= 60 * this.ratio ? 2 : small >= 4 ? 1 : 0;
      this.fill(left, top, right - gap, bottom - gap, this.cells[this.tree.firstLeaf[k][node]]);
      if (k === this.tree.depth && width >= 30 * this.ratio && height >= 12 * this.ratio) {
        this.labels.push({ k, node, left, top, width, height });
      }
      return;
    }
    this.tree.place(k, node);
    if (k > 0) {
      this.fill(left, top, right - 1, bottom - 1, this.frame);
      if (width >= 34 * this.ratio && height >= 14 * this.ratio) this.labels.push({ k, node, left, top, width, height });
    }
    const end = this.tree.firstChild[k][node + 1];
    for (let child = this.tree.firstChild[k][node]; child < end; child++) this.visit(k + 1, child);
  }

  fill(left, top, right, bottom, colour) {
    const { pixels, width } = this;
    left = Math.max(0, left); top = Math.max(0, top);
    right = Math.min(width, Math.max(right, left + 1)); bottom = Math.min(this.height, Math.max(bottom, top + 1));
    for (let y = top; y < bottom; y++) {
      const row = y * width;
      if (right - left > 24) pixels.fill(colour, row + left, row + right);
      else for (let at = row + left; at < row + right; at++) pixels[at] = colour;
    }
  }

  drawLabels() {
    const { context } = this, jobs = [];
    for (const label of this.labels) {
      if (label.k === this.tree.depth) this.leafLabel(label, jobs);
      else if (this.childrenAreReadable(label)) this.stripLabel(label, jobs);
      else this.wordsLabel(label, jobs);
    }
    jobs.sort((a, b) => a.size - b.size);  // setting a font is slow
    context.textAlign = "center"; context.textBaseline = "middle"; context.fillStyle = this.text;
    let size = 0;
    for (const job of jobs) {
      if (job.size !== size) { size = job.size; context.font = `${size}px ${this.font}`; }
      context.fillText(job.text, job.x, job.y);
    }
  }

  childrenAreReadable({ k, node, width, height }) {
    const children = this.tree.firstChild[k][node + 1] - this.tree.firstChild[k][node];
    return Math.sqrt((width * height) / children) >= (k + 1 === this.tree.depth ? 25 : 60) * this.ratio;
  }

  leafLabel({ node, left, top, width, height }, jobs) {
    const name = this.tree.names[node], room = width * 0.92, ratio = this.ratio;
    const fits = Math.min(height * 0.5, room / (0.6 * columns(name)), 22 * ratio);
    const size = Math.max(9 * ratio, Math.floor(fits));
    const text = clip(name, room / (0.6 * size));
    jobs.push({ text, size, x: left + width / 2, y: top + height / 2 });
  }

  /* The name of a node whose children can be read stands in its strip, in the part of it that is in view. */
  stripLabel({ k, node, left, top, width, height }, jobs) {
    const strip = 0.07 * height / (this.tree.depth - 1);
    const size = Math.floor(Math.min(15 * this.ratio, strip * 0.8));
    if (size < 9 * this.ratio) return;
    const from = Math.max(0, left), to = Math.min(this.width, left + width);
    const text = clip(this.tree.leading(k, node, 12).join("  "), (0.94 * (to - from)) / (0.6 * size));
    jobs.push({ text, size, x: (from + to) / 2, y: top + strip / 2 });
  }

  wordsLabel({ k, node, left, top, width, height }, jobs) {
    const size = Math.round(Math.max(10.5, Math.min(16, width / this.ratio / 9)) * this.ratio);
    const strip = 0.07 * height / (this.tree.depth - 1), line = 1.3 * size;
    const lines = Math.max(1, Math.min(10, Math.floor((0.92 * height - strip) / line)));
    const words = this.tree.leading(k, node, lines), middle = top + (height + strip) / 2;
    words.forEach((word, index) => {
      const text = clip(word, (0.94 * width) / (0.6 * size));
      jobs.push({ text, size, x: left + width / 2, y: middle + (index - (words.length - 1) / 2) * line });
    });
  }

  drawSelected() {
    if (this.selected === null) return;
    const { context, ratio } = this, [left, top, right, bottom] = this.onScreen(this.tree.depth, this.selected);
    context.strokeStyle = this.accent; context.lineWidth = 3 * ratio;
    const grow = Math.max(0, 9 * ratio - (right - left) / 2);  // a token that is a dot keeps a visible ring
    context.strokeRect(left - grow, top - grow, right - left + 2 * grow, bottom - top + 2 * grow);
  }

  /* ---- moving; positions are in device pixels ---- */

  zoomAt(x, y, factor) {
    const scale = Math.max(1, Math.min(this.maxScale, this.scale * factor));
    this.moveTo(this.x + x / this.scale - x / scale, this.y + y / this.scale - y / scale, scale);
  }

  moveTo(x, y, scale = this.scale) {
    this.scale = scale;
    this.x = Math.max(0, Math.min(this.width - this.width / scale, x));
    this.y = Math.max(0, Math.min(this.height - this.height / scale, y));
    this.redraw();
  }

  zoomTo(k, node, animate = true) {
    this.showPlace(k, node);
    const [x, y, width, height] = this.tree.rect[k].subarray(4 * node, 4 * node + 4);
    const fit = 0.96 * Math.min(this.width / width, this.height / height);
    const scale = Math.max(1, Math.min(this.maxScale, fit));
    const target = [x + width / 2 - this.width / scale / 2, y + height / 2 - this.height / scale / 2, scale];
    const calm = !animate || matchMedia("(prefers-reduced-motion: reduce)").matches;
    cancelAnimationFrame(this.flight);
    if (calm) { this.moveTo(...target); return; }
    const from = [this.x, this.y, this.scale], begin = performance.now();
    const step = (now) => {
      const time = Math.min(1, Math.max(0, (now - begin) / 350)), ease = time * time * (3 - 2 * time);
      const at = from[2] * (target[2] / from[2]) ** ease;
      // The centre moves in step with the size of the window, so that the flight is straight on the screen.
      const part = Math.abs(Math.log(target[2] / from[2])) < 0.01 ? ease : (1 / from[2] - 1 / at) / (1 / from[2] - 1 / target[2]);
      this.moveTo(from[0] + (target[0] - from[0]) * part, from[1] + (target[1] - from[1]) * part, at);
      if (time < 1) this.flight = requestAnimationFrame(step); else this.moveTo(...target);
    };
    this.flight = requestAnimationFrame(step);
  }

  showPlace(k, node) {  // lay out everything on the way to a node
    const leaf = this.tree.firstLeaf[k][node];
    for (let depth = 0; depth < k; depth++) this.tree.place(depth, this.tree.ancestor(depth, leaf));
  }

  /* The deepest node at a point, as [depth, node]. */
  pick(x, y) {
    let k = 0, node = 0;
    while (k < this.tree.depth && this.tree.placed[k][node]) {
      let inside = -1;
      const end = this.tree.firstChild[k][node + 1];
      for (let child = this.tree.firstChild[k][node]; child < end && inside < 0; child++) {
        const [left, top, right, bottom] = this.onScreen(k + 1, child);
        if (x >= left && x < right && y >= top && y < bottom) inside = child;
      }
      if (inside < 0) break;
      k++; node = inside;
    }
    return [k, node];
  }
}

function pixel(css) {  // "#rrggbb" or "hsl(...)" as the buffer's little-endian ABGR
  pixel.context ??= new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  pixel.context.fillStyle = css;
  pixel.context.fillRect(0, 0, 1, 1);
  const [red, green, blue] = pixel.context.getImageData(0, 0, 1, 1).data;
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function columns(text) {  // widths of characters of a fixed-width font
  let width = 0;
  for (const character of text) width += character.codePointAt(0) >= 0x1100 ? (character === "▁" ? 1 : 1.7) : 1;
  return width;
}

function clip(text, room) {
  if (columns(text) <= room) return text;
  let short = "";
  for (const character of text) {
    if (columns(short + character) > room - 1) break;
    short += character;
  }
  return short ? short + "…" : "";
}
