'use strict';
const pictures = JSON.parse(document.getElementById('pictures').textContent);
const all = (s, at = document) => [...at.querySelectorAll(s)];
const theme = document.querySelector('.theme');
theme.addEventListener('click', () => {
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const now = document.documentElement.dataset.theme || (dark ? 'dark' : 'light');
  document.documentElement.dataset.theme = now === 'dark' ? 'light' : 'dark';
});

class Viewer {
  constructor(root) {
    this.root = root;
    this.pane = root.querySelector('.viewer');
    [this.under, this.over] = all('img', this.pane);
    this.edge = root.querySelector('.edge');
    [this.leftName, this.rightName] = all('.name', this.pane);
    [this.left, this.right] = all('select', root);
    this.place = 50;
    for (const s of [this.left, this.right]) s.addEventListener('change', () => this.show());
    root.querySelector('.flip').addEventListener('click', () => this.flip());
    const follow = e => {
      const box = this.pane.getBoundingClientRect();
      this.move(100 * (e.clientX - box.left) / box.width);
    };
    this.pane.addEventListener('pointerdown', e => {
      try { this.pane.setPointerCapture(e.pointerId); } catch (lost) { /* the pointer is gone already */ }
      this.held = true; follow(e);
    });
    this.pane.addEventListener('pointermove', e => {
      if (this.held || e.pointerType === 'mouse') follow(e);
    });
    for (const kind of ['pointerup', 'pointercancel'])
      this.pane.addEventListener(kind, () => { this.held = false; });
    this.pane.addEventListener('keydown', e => {
      const step = {ArrowLeft: -4, ArrowRight: 4}[e.key];
      if (step) { this.move(this.place + step); e.preventDefault(); }
      if (e.key === ' ' || e.key === 'Enter') { this.flip(); e.preventDefault(); }
    });
  }
  use(sigma) {
    this.files = (pictures[this.root.dataset.sequence] || {})[sigma];
    this.root.querySelector('.missing').hidden = Boolean(this.files);
    all('.shown', this.root).forEach(e => { e.hidden = !this.files; });
    if (!this.files) return;
    all('.slices img', this.root).forEach(img => { img.src = this.files[img.dataset.of + '|slice'] || ''; });
    this.show();
  }
  show() {
    this.under.src = this.files[this.right.value];
    this.over.src = this.files[this.left.value];
    this.leftName.textContent = this.left.selectedOptions[0].textContent;
    this.rightName.textContent = this.right.selectedOptions[0].textContent;
    this.move(this.place);
  }
  move(place) {
    this.place = Math.max(0, Math.min(100, place));
    this.over.style.clipPath = `inset(0 ${100 - this.place}% 0 0)`;
    this.edge.style.left = this.place + '%';
    this.pane.setAttribute('aria-valuenow', Math.round(this.place));
    this.leftName.style.opacity = this.place > 12 ? 1 : 0;
    this.rightName.style.opacity = this.place < 88 ? 1 : 0;
  }
  flip() { this.move(this.place > 50 ? 0 : 100); }
}
const viewers = all('.sequence').map(root => new Viewer(root));

function choose(sigma) {
  all('[data-sigma]').forEach(e => { e.hidden = e.dataset.sigma !== sigma; });
  all('.bar button').forEach(b => b.setAttribute('aria-pressed', String(b.value === sigma)));
  viewers.forEach(v => v.use(sigma));
}
all('.bar button').forEach(b => b.addEventListener('click', () => choose(b.value)));
choose(document.body.dataset.level);

const tip = document.querySelector('.tip');
all('svg.chart').forEach(svg => {
  const data = JSON.parse(svg.dataset.chart), cursor = svg.querySelector('.cursor');
  svg.addEventListener('pointermove', e => {
    const box = svg.getBoundingClientRect();
    const x = (e.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    let best = 0;
    data.at.forEach((at, i) => { if (Math.abs(at - x) < Math.abs(data.at[best] - x)) best = i; });
    cursor.setAttribute('x1', data.at[best]); cursor.setAttribute('x2', data.at[best]);
    cursor.style.visibility = 'visible';
    tip.replaceChildren();
    const lines = data.lines.filter(l => l.y[best]).sort((a, b) => b.y[best] - a.y[best]);
    for (const text of [`${data.label} ${data.x[best]}`, ...lines.map(l => `${l.y[best]}  ${l.name}`)]) {
      const row = document.createElement('div'); row.textContent = text; tip.append(row);
    }
    tip.style.display = 'block';
    const right = e.clientX + 14 + tip.offsetWidth < innerWidth;
    tip.style.left = (right ? e.clientX + 14 : e.clientX - 14 - tip.offsetWidth) + 'px';
    tip.style.top = Math.max(4, Math.min(e.clientY, innerHeight - tip.offsetHeight - 4)) + 'px';
  });
  svg.addEventListener('pointerleave', () => {
    tip.style.display = 'none';
    cursor.style.visibility = 'hidden';
  });
});
document.documentElement.dataset.ready = 'yes';
