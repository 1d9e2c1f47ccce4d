"""The HTML page of `inspect`: one file that holds its data, its looks and its script, and needs no network.

Texts are never made part of the markup: they lie in a JSON block, and the script puts them in as text nodes. The
page's own policy forbids it to load anything.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from data.ranks import ranks_of
from data.schema import Group


def page(path: str, groups: Sequence[Group], signals: Sequence[str], rank_by: str, total: int, split: str) -> str:
    """The page.

    Args:
        path: of the set, as its title.
        groups: what to show.
        signals: ranking signals of the set; `rank_by` is the one chosen at first.
        total: groups that the split has, shown or not.
    """
    data = {
        "path": path,
        "signals": list(signals),
        "rank_by": rank_by,
        "total": total,
        "split": split,
        "groups": [_group(group, signals) for group in groups],
    }
    # "<" only ever stands in a JSON string, where \u003c is the same character: no text can end the block.
    content = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return TEMPLATE.replace("STYLE_HERE", STYLE).replace("SCRIPT_HERE", SCRIPT).replace("DATA_HERE", content)


def _group(group: Group, signals: Sequence[str]) -> dict[str, Any]:
    ranks = [ranks_of(group.negatives, signal) for signal in signals]
    return {
        "id": group.id,
        "split": group.split,
        "prompt": group.prompt,
        "truth": {"text": group.response, "logp": _value(group.reference_logp), "tokens": len(group.response_ids)},
        "negatives": [
            {
                "strategy": c.strategy,
                "text": c.text,
                "logp": _value(c.reference_logp),
                "tokens": len(c.ids),
                "end": c.finish_reason,
                "source": c.source_id,
                "similarity": [_value(c.similarity.get(name)) for name in signals],
                "ranks": [by_signal[place] for by_signal in ranks],
            }
            for place, c in enumerate(group.negatives)
        ],
    }


def _value(number: float | None) -> float | None:
    """A float32 in as few digits as tell it from every other one; None where it is no number."""
    return float(f"{number:.9g}") if number is not None and math.isfinite(number) else None


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>Negative set</title>
<style>STYLE_HERE</style>
</head>
<body>
<header>
<h1>Negative set <span id="path"></span></h1>
<p id="shown"></p>
<form id="filters">
<label class="wide">Search<input id="text" type="search" placeholder="text or group id" autocomplete="off"></label>
<label>Split<select id="split"></select></label>
<label>Signal<select id="signal"></select></label>
<label>Sort by<select id="sort">
<option value="rank">rank, groups as stored</option>
<option value="similarity-down">similarity, highest first</option>
<option value="similarity-up">similarity, lowest first</option>
<option value="logp-down">log p per token, highest first</option>
<option value="logp-up">log p per token, lowest first</option>
</select></label>
<fieldset><legend>Strategies</legend><div id="strategies"></div></fieldset>
</form>
</header>
<noscript><p>This page needs JavaScript to show its groups. It loads nothing from the network.</p></noscript>
<main id="groups"></main>
<nav><button id="previous" type="button">Previous</button><span id="where" role="status"></span>\
<button id="next" type="button">Next</button></nav>
<script type="application/json" id="data">DATA_HERE</script>
<script>SCRIPT_HERE</script>
</body>
</html>
"""

STYLE = """
:root { --paper: #f6f6f4; --card: #fff; --ink: #1d2126; --soft: #626a73; --line: #dfe1e0; --accent: #1f6f5c;
  --tint: #e6f2ee; --warn: #a3470b; --mark: #ffe38a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1d2125; --ink: #e7e9ea; --soft: #9aa3ab;
  --line: #32383e; --accent: #6fcbb0; --tint: #1c322c; --warn: #f0a36b; --mark: #6b5713; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1240px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 20px; overflow-wrap: anywhere; }
h1 span { color: var(--soft); font-weight: 400; }
#shown { margin: 2px 0 16px; color: var(--soft); }
#filters { display: flex; flex-wrap: wrap; gap: 12px 16px; align-items: end; margin-bottom: 16px; }
label { display: flex; flex-direction: column; font-size: 13px; color: var(--soft); min-width: 0; }
label.wide { flex: 1 1 220px; }
input[type=search], select, button { font: inherit; font-size: 15px; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: 7px 10px; min-height: 40px; max-width: 100%; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
button { cursor: pointer; }
button:disabled { opacity: .45; cursor: default; }
fieldset { border: 0; margin: 0; padding: 0; font-size: 13px; color: var(--soft); }
legend { padding: 0; }
#strategies { display: flex; flex-wrap: wrap; gap: 6px; }
#strategies label { flex-direction: row; align-items: center; gap: 6px; min-height: 40px; padding: 0 10px;
  border: 1px solid var(--line); border-radius: 6px; background: var(--card); color: var(--ink); font-size: 15px;
  cursor: pointer; }
#strategies input { accent-color: var(--accent); margin: 0; }
article { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); margin-bottom: 16px;
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.left { padding: 16px; border-right: 1px solid var(--line); }
.fixed { position: sticky; top: 16px; max-height: calc(100vh - 32px); overflow-y: auto; }
h2 { margin: 0 0 2px; font-size: 13px; font-weight: 600; color: var(--soft); }
.id { margin: 0 0 12px; font: 12px/1.5 ui-monospace, monospace; color: var(--soft); overflow-wrap: anywhere; }
.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.truth { margin-top: 14px; padding: 10px 12px; border-radius: 8px; background: var(--tint); }
.truth h2 { color: var(--accent); }
ol { list-style: none; margin: 0; padding: 0; }
li { padding: 12px 16px; border-bottom: 1px solid var(--line); }
li:last-child { border-bottom: 0; }
.facts { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 4px 0 0; font-size: 13px; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.facts.head { margin: 0 0 2px; }
.rank { color: var(--ink); font-weight: 600; }
.strategy { color: var(--accent); font-weight: 600; }
.likelier, .cut { color: var(--warn); }
.link { min-height: 0; padding: 0; border: 0; background: none; color: var(--accent); font-size: 13px;
  text-decoration: underline; }
.empty { padding: 48px 16px; text-align: center; color: var(--soft); }
mark { background: var(--mark); color: inherit; border-radius: 2px; }
nav { display: flex; justify-content: center; align-items: center; gap: 16px; margin-top: 20px; }
@media (max-width: 760px) {
  body { padding: 16px 12px; }
  #filters > label { flex: 1 1 120px; }
  #filters > label.wide, #filters > label:has(#sort), fieldset { flex: 1 1 100%; }
  #strategies label { flex: 1 1 auto; }
  article { grid-template-columns: minmax(0, 1fr); }
  .left { border-right: 0; border-bottom: 1px solid var(--line); }
  .fixed { position: static; max-height: none; }
}
"""

SCRIPT = """
'use strict';
const PER_PAGE = 20;
const data = JSON.parse(document.getElementById('data').textContent);
const $ = id => document.getElementById(id);
const strategies = [...new Set(data.groups.flatMap(g => g.negatives.map(c => c.strategy)))].sort();
const known = new Set(data.groups.map(g => g.id));
let page = 0;

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter(child => child !== null));
  return made;
}
function marked(text, needle, className) {
  const made = element('p', className);
  // Search in the text itself, not in a lower-cased copy, which may be longer.
  const pattern = needle && new RegExp(needle.replace(/[.*+?^${}()|[\\]\\\\]/g, '\\\\$&'), 'giu');
  let from = 0;
  if (pattern) for (const found of text.matchAll(pattern)) {
    made.append(text.slice(from, found.index), element('mark', '', found[0]));
    from = found.index + found[0].length;
  }
  made.append(text.slice(from));
  return made;
}
const number = (value, digits) => value === null ? '\\u2013' : value.toFixed(digits).replace('-', '\\u2212');
const perToken = c => c.logp === null || !c.tokens ? null : c.logp / c.tokens;
const tokens = c => c.tokens + (c.tokens === 1 ? ' token' : ' tokens');
const likelihood = c => 'log p ' + number(c.logp, 2) + ', ' + number(perToken(c), 2) + ' per token';

function ranked(group, signal) {
  return group.negatives.map(c => ({...c, rank: c.ranks[signal]})).sort((a, b) => a.rank - b.rank);
}
function sorter(kind, signal) {
  const [what, way] = kind.split('-');
  const value = c => what === 'logp' ? perToken(c) : c.similarity[signal];
  const up = way === 'up' ? 1 : -1;
  return (a, b) => {
    const [x, y] = [value(a), value(b)];
    return x === y ? 0 : x === null ? 1 : y === null ? -1 : up * (x - y);
  };
}
function selected() {
  const needle = $('text').value.trim();
  const pattern = needle.toLowerCase();
  const signal = data.signals.indexOf($('signal').value);
  const split = $('split').value;
  const on = new Set([...document.querySelectorAll('#strategies input:checked')].map(box => box.value));
  const kind = $('sort').value;
  const order = kind === 'rank' ? null : sorter(kind, signal);
  const rows = [];
  for (const group of data.groups) {
    if (split !== 'all' && group.split !== split) continue;
    const shown = ranked(group, signal).filter(c => on.has(c.strategy));
    if (!shown.length) continue;
    const texts = [group.id, group.prompt, group.truth.text, ...shown.map(c => c.text)];
    if (pattern && !texts.some(text => text.toLowerCase().includes(pattern))) continue;
    if (order) shown.sort(order);
    rows.push({group, shown});
  }
  if (order) rows.sort((a, b) => order(a.shown[0], b.shown[0]));
  return {rows, needle, signal};
}
function candidate(c, truth, needle) {
  const facts = element('p', 'facts head',
    element('span', 'rank', 'rank ' + c.rank),
    element('span', 'strategy', c.strategy),
    ...data.signals.map((name, index) => element('span', '', name + ' ' + number(c.similarity[index], 3))));
  const likelier = c.logp !== null && truth.logp !== null && c.logp > truth.logp;
  const rest = element('p', 'facts',
    element('span', likelier ? 'likelier' : '', likelihood(c) + (likelier ? ', likelier than the truth' : '')),
    element('span', '', tokens(c)),
    c.end && element('span', c.end === 'length' ? 'cut' : '', 'ends by ' + c.end));
  if (c.source) {
    const source = element('span', '', 'from ');
    if (known.has(c.source)) {
      const link = element('button', 'link', c.source.slice(0, 12));
      link.type = 'button';
      link.title = 'Show group ' + c.source;
      link.onclick = () => { $('filters').reset(); $('text').value = c.source; change(); scrollTo(0, 0); };
      source.append(link);
    } else source.append(c.source.slice(0, 12));
    rest.append(source);
  }
  return element('li', '', facts, marked(c.text, needle, 'text'), rest);
}
function card({group, shown}, needle) {
  const truth = element('div', 'truth', element('h2', '', 'Ground truth, rank 0'),
    marked(group.truth.text, needle, 'text'),
    element('p', 'facts', element('span', '', likelihood(group.truth)), element('span', '', tokens(group.truth))));
  const left = element('div', 'left', element('div', 'fixed', element('h2', '', 'Prompt (' + group.split + ')'),
    element('p', 'id', group.id), marked(group.prompt, needle, 'text prompt'), truth));
  return element('article', '', left, element('ol', '', ...shown.map(c => candidate(c, group.truth, needle))));
}
function draw() {
  const {rows, needle} = selected();
  const pages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
  page = Math.min(page, pages - 1);
  const part = rows.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  $('groups').replaceChildren(...part.map(row => card(row, needle)));
  if (!part.length) $('groups').append(element('p', 'empty', 'No group fits. Change the search, split or strategies.'));
  $('where').textContent = rows.length === 0 ? 'no groups' :
    (page * PER_PAGE + 1) + '\\u2013' + (page * PER_PAGE + part.length) + ' of ' + rows.length;
  $('previous').disabled = page === 0;
  $('next').disabled = page === pages - 1;
}
function change() { page = 0; draw(); }
function choices(id, values, chosen) {
  $(id).append(...values.map(value => new Option(value, value, value === chosen, value === chosen)));
}

$('path').textContent = data.path;
document.title = 'Negative set ' + data.path;
const of = data.split === 'all' ? ' groups' : ' groups of split ' + data.split;
$('shown').textContent = 'This page holds ' + data.groups.length + ' of ' + data.total + of + '.';
choices('split', ['all', 'train', 'test'], 'all');
choices('signal', data.signals, data.rank_by);
for (const name of strategies) {
  const box = document.createElement('input');
  Object.assign(box, {type: 'checkbox', value: name, defaultChecked: true});
  $('strategies').append(element('label', '', box, name));
}
$('filters').addEventListener('input', change);
$('filters').addEventListener('submit', event => event.preventDefault());
$('previous').onclick = () => { page -= 1; draw(); scrollTo(0, 0); };
$('next').onclick = () => { page += 1; draw(); scrollTo(0, 0); };
draw();
"""
