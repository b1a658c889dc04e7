"""Style and script of the heat map page, and the policy that lets the page run these and nothing else."""

from __future__ import annotations

import base64
import hashlib

CSS = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--soft:#59636e;--line:#d5dae0;
--zero:oklch(.965 .004 260);--warm:oklch(.68 .17 45);--cool:oklch(.66 .14 245);--much:oklch(.66 .17 305)}
@media (prefers-color-scheme:dark){:root{--page:#14171b;--ink:#eceff3;--soft:#a0a9b4;--line:#353b43;
--zero:oklch(.27 .008 260);--warm:oklch(.53 .15 45);--cool:oklch(.52 .13 250);--much:oklch(.52 .18 305)}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:76rem;margin:0 auto;padding:2rem 1.5rem 4rem}
h1{font-size:1.5rem;margin:0 0 1rem}h2{font-size:1.1rem;margin:2rem 0 .25rem}
p{margin:.25rem 0}small,figcaption p,.legend{color:var(--soft)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600}
.facts th,.facts td,.summary th,.summary td{padding:.3rem 1.2rem .3rem 0;border-bottom:1px solid var(--line);
vertical-align:top}
.facts th{color:var(--soft);font-weight:400;white-space:nowrap}.facts td{overflow-wrap:anywhere}
details{margin:.5rem 0}summary{color:var(--soft);cursor:pointer}
.summary small{display:block}
.summary tbody{white-space:nowrap}
.summary thead th{font-weight:400;color:var(--soft);vertical-align:bottom}
#choice{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;gap:.5rem 1.5rem;align-items:baseline;
padding:.75rem 0;margin-top:1.5rem;background:var(--page);border-bottom:1px solid var(--line)}
#choice[hidden],figure[hidden]{display:none}
select{font:inherit;color:inherit;background:var(--page);border:1px solid var(--line);border-radius:6px;
padding:.2rem .5rem;max-width:24rem}
output{flex:1 1 20rem;min-height:1.5em;color:var(--soft);font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
figure{margin:0 0 3rem}
.legend{display:flex;gap:.6rem;align-items:center;font-size:.85rem;margin:.5rem 0 .75rem}
.bar{width:11rem;height:.75rem;border-radius:3px;
background:linear-gradient(in oklab to right,var(--zero),var(--much))}
.bar.diverging{background:linear-gradient(in oklab to right,var(--warm),var(--zero),var(--cool))}
.bar.flipped{background:linear-gradient(in oklab to right,var(--cool),var(--zero),var(--warm))}
.scroll{overflow-x:auto}
.map{border-spacing:2px;border-collapse:separate;font-size:.8rem;line-height:1.35}
.map thead th{font-weight:400;color:var(--soft);padding:0 .4rem .3rem;text-align:center}
.map th:first-child{font-weight:400;color:var(--soft);text-align:right;padding:0 .5rem 0 0}
.map td{min-width:5rem;padding:.12rem .4rem;text-align:center;border-radius:3px}
.cell{--end:var(--much);background:color-mix(in oklab,var(--end) var(--t),var(--zero))}
.warm{--end:var(--warm)}.cool{--end:var(--cool)}
.none{color:var(--soft);outline:1px dashed var(--line);outline-offset:-1px}
td:focus-visible,td[title]:hover,select:focus-visible{outline:2px solid var(--ink);outline-offset:-1px}
@media print{#choice{display:none}figure{break-inside:avoid}}
"""

SCRIPT = """
const all = [...document.querySelectorAll('figure')], id = name => document.getElementById(name)
const of = id('of'), measure = id('measure'), said = id('said')
const fill = (list, entries) =>
  list.replaceChildren(...[...new Map(entries)].map(([value, text]) => new Option(text, value)))
const show = () => {
  const kept = measure.value, those = all.filter(each => each.dataset.of === of.value)
  fill(measure, those.map(each => [each.dataset.measure, each.dataset.title]))
  if (kept) measure.value = kept
  if (!measure.value) measure.selectedIndex = 0
  for (const each of all) each.hidden = each.dataset.of !== of.value || each.dataset.measure !== measure.value
  said.textContent = ''
}
fill(of, all.map(each => [each.dataset.of, each.dataset.of]))
of.onchange = measure.onchange = show
id('choice').hidden = false
show()
const tell = event => { const cell = event.target.closest('td[title]'); if (cell) said.textContent = cell.title }
addEventListener('mouseover', tell)
addEventListener('focusin', tell)
for (const each of all) { const first = each.querySelector('td[title]'); if (first) first.tabIndex = 0 }
const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }
addEventListener('keydown', event => {
  const cell = event.target.closest('.map td'), step = steps[event.key]
  if (!cell || !step) return
  event.preventDefault()
  let next = cell
  do next = next.closest('tbody').rows[next.parentNode.sectionRowIndex + step[0]]?.cells[next.cellIndex + step[1]]
  while (next?.tagName === 'TD' && !next.title)
  if (next?.tagName !== 'TD') return
  cell.tabIndex = -1
  next.tabIndex = 0
  next.focus()
})
"""

_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'"
)
