"""The look of the HTML pages, light and dark, wide and narrow and on paper; and the one script, which sorts tables.

Colours are custom properties, so that drawings inside a page follow the reader's choice of light or dark as well:
`var(--ink)`, `--muted`, `--hairline`, `--shade`, `--accent`, `--good`, `--bad`, and `--c0` to `--c7` for what is
compared (text and lines on `--paper` in all of them).
"""

STYLE = """
:root { --paper: #ffffff; --ink: #1c2430; --muted: #5b6675; --hairline: #e1e6eb; --shade: #f4f6f8; --accent: #004488;
  --good: #1b7a33; --bad: #b03a50; --warn: #fdf3dc; --warn-ink: #6b4a00;
  --c0: #004488; --c1: #bb5566; --c2: #228833; --c3: #996a00; --c4: #aa3377; --c5: #2a86a8; --c6: #4d4d4d;
  --c7: #7a5cc9; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e4e8ee; --muted: #9ca8b6; --hairline: #2d3640;
  --shade: #1c2229; --accent: #7fb2e5; --good: #6fcb86; --bad: #f08ea0; --warn: #3a2f14; --warn-ink: #f0d898;
  --c0: #7fb2e5; --c1: #f08ea0; --c2: #6fcb86; --c3: #dfb04a; --c4: #e08cc4; --c5: #6cc8e6; --c6: #c4c4c4;
  --c7: #b3a2f2; } }
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .3rem; font-weight: 650; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 .4rem; font-weight: 650; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.7rem 0 .3rem; font-weight: 600; }
p { margin: .4rem 0; max-width: 52rem; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: .15em; }
code, pre, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .87em; }
.quiet, caption, figcaption { color: var(--muted); }
.small { font-size: .87rem; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.warning { background: var(--warn); color: var(--warn-ink); border-left: 3px solid currentColor; padding: .5rem .9rem;
  margin: .8rem 0; border-radius: 0 4px 4px 0; max-width: none; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .7rem 1.6rem;
  margin: 1.3rem 0; }
.fact dt { color: var(--muted); font-size: .82rem; }
.fact dd { margin: 0; overflow-wrap: anywhere; }
.fact:has(pre) { grid-column: 1 / -1; }
.fact pre { margin: .1rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
nav ul { list-style: none; margin: .6rem 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.scroll { overflow-x: auto; margin: .7rem 0; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
caption { text-align: left; padding: 0 0 .3rem; }
th, td { padding: .28rem .55rem; text-align: right; border-bottom: 1px solid var(--hairline); vertical-align: middle;
  white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; }
th.t, td.t { text-align: left; }
thead th { color: var(--muted); font-weight: 500; font-size: .85rem; vertical-align: bottom; white-space: normal;
  line-height: 1.25; }
tbody th { font-weight: 500; }
tbody tr:hover { background: var(--shade); }
td.wrap { white-space: normal; min-width: 14rem; }
.sortable thead button { all: unset; cursor: pointer; color: inherit; }
.sortable thead button:hover, .sortable thead button:focus-visible { color: var(--ink); text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
svg { display: block; max-width: 100%; overflow: visible; }
svg text { font-family: inherit; }
figure { margin: 1rem 0; }
.picture { background: #ffffff; border-radius: 4px; padding: .3rem; }
.picture svg { height: auto; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--accent); }
.plot { display: grid; grid-template-columns: fit-content(42%) minmax(8rem, 1fr) max-content; align-items: center;
  column-gap: 1.1rem; max-width: 52rem; font-variant-numeric: tabular-nums; font-size: .93rem; }
.plot .row { display: contents; }
.plot .row > * { min-width: 0; }
.plot .name { overflow-wrap: anywhere; }
.plot .value { text-align: right; }
.plot .head { color: var(--muted); font-size: .85rem; padding-top: .7rem; }
.lane { padding: 0 .6rem; }
td.lane, th.lane { width: 40%; min-width: 10rem; padding: 0 1rem; }
.dense th, .dense td { padding-top: 0; padding-bottom: 0; }
td.lane + td, th.lane + th { padding-left: 1.2rem; }
.lane svg { width: 100%; }
.g, .z, .w { stroke: var(--hairline); stroke-width: 1; }
.z { stroke: var(--muted); }
.w { stroke-width: 2; }
.d { stroke: var(--paper); stroke-width: 1; }
.r { fill: var(--paper); stroke-width: 2; }
.ticks text, .histogram text { font-size: 12px; fill: var(--muted); }
.s0.d { fill: var(--c0); } .s1.d { fill: var(--c1); } .s2.d { fill: var(--c2); } .s3.d { fill: var(--c3); }
.s4.d { fill: var(--c4); } .s5.d { fill: var(--c5); } .s6.d { fill: var(--c6); } .s7.d { fill: var(--c7); }
.s0.w, .s0.r { stroke: var(--c0); } .s1.w, .s1.r { stroke: var(--c1); } .s2.w, .s2.r { stroke: var(--c2); }
.s3.w, .s3.r { stroke: var(--c3); } .s4.w, .s4.r { stroke: var(--c4); } .s5.w, .s5.r { stroke: var(--c5); }
.s6.w, .s6.r { stroke: var(--c6); } .s7.w, .s7.r { stroke: var(--c7); }
.histogram rect { stroke: var(--paper); stroke-width: 1; fill: var(--accent); }
.histogram .n { fill: var(--bad); } .histogram .p { fill: var(--good); }
.histogram .nt { fill: var(--bad); } .histogram .pt { fill: var(--good); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; margin: .7rem 0; list-style: none; }
.symbol { display: inline-block; vertical-align: -.12em; margin-right: .3em; }
.items { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.item { border: 1px solid var(--hairline); border-radius: 6px; padding: .6rem .8rem; min-width: 0;
  break-inside: avoid; }
.item h4 { margin: 0 0 .4rem; font-size: .87rem; font-weight: 600; overflow-wrap: anywhere; }
.item pre { margin: .2rem 0 .5rem; padding: .45rem .6rem; background: var(--shade); border-radius: 4px;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 20rem; overflow-y: auto; unicode-bidi: plaintext; }
.item pre i { font-style: normal; color: var(--muted); opacity: .75; }
.item .what { color: var(--muted); font-size: .8rem; }
.item table { width: 100%; font-size: .87rem; }
.item td, .item th { white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top; }
.item td:not(.t) { white-space: nowrap; }
.chosen { font-weight: 650; }
@media (max-width: 40rem) {
  body { font-size: 14.5px; }
  main { padding: 1.3rem .9rem 3rem; }
  .plot { display: block; }
  .plot .row { display: grid; grid-template-columns: 1fr max-content; padding-top: .5rem; }
  .plot .lane { order: 1; grid-column: 1 / -1; }
}
@media print {
  :root { color-scheme: light; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  .item pre { max-height: none; }
  h2, h3, summary { break-after: avoid; }
  tr { break-inside: avoid; }
}
"""

SCRIPT = """
'use strict';
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim() || head.classList.contains('lane')) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    const key = row => {
      const cell = row.cells[column], value = cell.dataset.v;
      return value === undefined ? cell.textContent.trim() : Number(value);
    };
    button.addEventListener('click', () => {
      const rows = [...table.tBodies[0].rows];
      const figures = rows.some(row => typeof key(row) === 'number');
      const was = head.getAttribute('aria-sort');
      const up = was ? was === 'descending' : !figures;
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      rows.sort((a, b) => {
        const x = key(a), y = key(b);
        if (figures && typeof x !== typeof y) return typeof x === 'number' ? -1 : 1;  // nothing comes last
        const order = figures && typeof x === 'number' ? x - y
          : String(x).localeCompare(String(y), undefined, {numeric: true});
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(one => { one.open = true; }));
"""
