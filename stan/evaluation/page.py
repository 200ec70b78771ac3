"""Style and behaviour of the report page: plain CSS and JavaScript, no library, nothing is loaded."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d1c1a; --soft: #6b6860; --line: #e4e1da; --wash: #f2f0eb;
  --accent: #0b62a8; --warn-ink: #7a4b00; --warn: #fff4dc;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #b0509a; --s4: #a67c00; --s5: #3a9bd1; --s6: #7a5195;
  --s7: #555;
}
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) {
  --paper: #161615; --card: #1f1f1d; --ink: #edebe6; --soft: #a3a098; --line: #373633; --wash: #2a2926;
  --accent: #79bdf2; --warn-ink: #ffd68a; --warn: #3b2f14;
  --s0: #56b4e9; --s1: #ff9147; --s2: #3fd0a2; --s3: #e79fd0; --s4: #e6b93a; --s5: #9bd3f5; --s6: #bfa0dd;
  --s7: #bbb;
} }
:root[data-theme=dark] {
  color-scheme: dark;
  --paper: #161615; --card: #1f1f1d; --ink: #edebe6; --soft: #a3a098; --line: #373633; --wash: #2a2926;
  --accent: #79bdf2; --warn-ink: #ffd68a; --warn: #3b2f14;
  --s0: #56b4e9; --s1: #ff9147; --s2: #3fd0a2; --s3: #e79fd0; --s4: #e6b93a; --s5: #9bd3f5; --s6: #bfa0dd;
  --s7: #bbb;
}
:root[data-theme=light] { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 44px 0 12px; }
h3 { font-size: 16px; margin: 0; }
p { margin: 6px 0; max-width: 75ch; }
header { display: flex; flex-wrap: wrap; gap: 12px 20px; align-items: flex-start;
  justify-content: space-between; }
.badge { display: inline-block; font-size: 12.5px; font-weight: 600; padding: 2px 9px; border-radius: 99px;
  background: var(--wash); color: var(--soft); vertical-align: 5px; margin-left: 8px; }
.badge.changed { background: var(--warn); color: var(--warn-ink); }
.lead { color: var(--soft); }
.notes { list-style: none; margin: 18px 0 0; padding: 0; display: grid; gap: 6px; }
.notes li { background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: 8px 12px;
  overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
td .more { display: block; color: var(--soft); font-size: 12.5px; }
td b { font-weight: 700; }
td.soft { color: var(--soft); }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.by-sequence { margin-bottom: 18px; }
.sequence { scroll-margin-top: 64px; }
tr.published td { color: var(--soft); }
tr.ruled td { border-top: 2px solid var(--line); }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 16px; }
.two > * { min-width: 0; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: 13px; margin-top: 6px; }
.chart { width: 100%; height: auto; display: block; touch-action: pan-y; }
.chart .grid { stroke: var(--line); }
.chart text { fill: var(--soft); font-size: 11px; }
.chart .label { font-size: 11.5px; fill: var(--ink); }
.chart .cursor { stroke: var(--soft); stroke-dasharray: 3 3; visibility: hidden; }
polyline { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
circle { fill: currentColor; }
.noisy { color: var(--soft); } polyline.noisy { stroke-dasharray: 2 4; }
.published { color: var(--line); } polyline.published { stroke-width: 1.5; }
.s0 { color: var(--s0); } .s1 { color: var(--s1); } .s2 { color: var(--s2); } .s3 { color: var(--s3); }
.s4 { color: var(--s4); } .s5 { color: var(--s5); } .s6 { color: var(--s6); } .s7 { color: var(--s7); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 4px 0 8px; padding: 0;
  font-size: 13px; color: var(--ink); }
.legend svg { width: 22px; height: 8px; margin-right: 6px; vertical-align: 1px; }
.tip { position: fixed; z-index: 9; pointer-events: none; background: var(--ink); color: var(--paper);
  font-size: 12.5px; line-height: 1.45; padding: 6px 9px; border-radius: 7px; display: none; max-width: 240px;
  font-variant-numeric: tabular-nums; }
button, select { font: inherit; font-size: 13px; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: 5px 11px; cursor: pointer; min-height: 32px; }
button[aria-pressed=true] { background: var(--ink); border-color: var(--ink); color: var(--paper); }
button:focus-visible, select:focus-visible, input:focus-visible { outline: 2px solid var(--accent);
  outline-offset: 2px; }
.bar { position: sticky; top: 0; z-index: 5; background: var(--paper); padding: 10px 0;
  display: flex; gap: 6px;
  flex-wrap: wrap; align-items: center; border-bottom: 1px solid var(--line); margin-bottom: 14px; }
.bar span { color: var(--soft); font-size: 13px; margin-right: 2px; }
.sequences { display: grid; gap: 18px; }
.sequence { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 14px 22px; }
.sequence > .top { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: 2px 14px;
  align-items: baseline; }
.top small { color: var(--soft); }
.viewer { position: relative; overflow: hidden; border-radius: 8px; background: #000; cursor: ew-resize;
  touch-action: pan-y; user-select: none; -webkit-user-select: none; }
.viewer img { display: block; width: 100%; image-rendering: pixelated; pointer-events: none; }
.viewer img.over { position: absolute; inset: 0; height: 100%; }
.viewer .edge { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 4px #000a; pointer-events: none; }
.viewer .edge::after { content: ""; position: absolute; top: 50%; left: 50%; width: 26px; height: 26px;
  margin: -13px 0 0 -13px; border-radius: 50%; background: #fff; box-shadow: 0 0 5px #000a; }
.viewer .edge::before { content: "⇆"; position: absolute; z-index: 1; top: 50%; left: 50%; width: 26px;
  margin: -13px 0 0 -13px; text-align: center; font-size: 14px; line-height: 26px; color: #222; }
.viewer .name { position: absolute; top: 8px; padding: 1px 8px; border-radius: 6px; background: #000a;
  color: #fff; font-size: 12.5px; pointer-events: none; }
.viewer .name.l { left: 8px; } .viewer .name.r { right: 8px; }
.controls { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 8px; align-items: center; }
.controls label { font-size: 13px; color: var(--soft); display: flex; gap: 5px; align-items: center; }
.slices { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 10px; font-size: 12.5px;
  color: var(--soft); align-items: center; margin-top: 10px; }
.slices img { width: 100%; height: 52px; image-rendering: pixelated; border-radius: 4px; display: block; }
.remark { color: var(--soft); font-size: 13px; }
.missing { color: var(--soft); padding: 30px 12px; text-align: center; font-size: 13px;
  background: var(--wash);
  border-radius: 8px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 18px; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details summary { cursor: pointer; color: var(--accent); margin: 12px 0 8px; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
footer p { max-width: 90ch; }
[hidden] { display: none !important; }
@media (max-width: 760px) {
  main { padding: 18px 14px 50px; } h1 { font-size: 23px; } .card { padding: 12px; }
  .sequence { grid-template-columns: minmax(0, 1fr); }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: 8px; }
  .bar { flex-wrap: nowrap; overflow-x: auto; } .bar button { flex: none; }
}
@media print { .bar, .controls, .theme { display: none; } .card { break-inside: avoid; } }
"""

JS = """
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
"""
