
'use strict';
const PER_PAGE = 20;
const $ = id => document.getElementById(id);
const data = JSON.parse($('data').textContent);
let page = 0;

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter(child => child !== null));
  return made;
}
// Appends a text in which what is searched for is marked.
function appendMarked(made, text, needle) {
  // Search in the text itself, not in a lower-cased copy, which may be longer.
  const pattern = needle && new RegExp(needle.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'), 'giu');
  let from = 0;
  if (pattern) for (const found of text.matchAll(pattern)) {
    made.append(text.slice(from, found.index), element('mark', '', found[0]));
    from = found.index + found[0].length;
  }
  made.append(text.slice(from));
}
function marked(text, needle, className = 'text') {
  const made = element('p', className);
  appendMarked(made, text, needle);
  return made;
}
// The text as `marked`, its words that are not in another one as insertions, with `removed` the other's as deletions.
function compared(text, other, needle, removed) {
  const made = element('p', 'text');
  for (const {kind, part} of wordDifferences(other, text)) {
    if (kind === 'removed' && !removed) continue;
    const [, space, words] = part.match(/^(\s*)([^]*)$/);
    const changed = kind !== 'kept' && words && element(kind === 'added' ? 'ins' : 'del', '');
    if (changed) made.append(space);
    appendMarked(changed || made, changed ? words : part, needle);
    if (changed) made.append(changed);
  }
  return made;
}
const MOST_PAIRS = 4e6;
// Of two texts, in order: parts that both have ('kept'), that only the second has ('added') or the first ('removed').
function wordDifferences(before, after) {
  const split = text => text.match(/\s*(?:[\p{L}\p{M}\p{N}_]+|[^\s])|\s+$/gu) ?? [];
  const [a, b] = [split(before), split(after)];
  const [x, y] = [a, b].map(words => words.map(word => word.trim()));
  let start = 0;
  while (start < a.length && start < b.length && x[start] === y[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && x[a.length - 1 - end] === y[b.length - 1 - end]) end++;
  const [n, m] = [a.length - start - end, b.length - start - end];
  // [i, j]: the longest common subsequence of what follows. Two very long texts are not looked into.
  const look = n * m <= MOST_PAIRS;
  const longest = look && new Uint16Array((n + 1) * (m + 1));
  if (look) for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--)
    longest[i * (m + 1) + j] = x[start + i] === y[start + j] ? longest[(i + 1) * (m + 1) + j + 1] + 1
      : Math.max(longest[(i + 1) * (m + 1) + j], longest[i * (m + 1) + j + 1]);
  const parts = [];
  const add = (kind, part) => {
    if (parts.at(-1)?.kind === kind) parts.at(-1).part += part;
    else parts.push({kind, part});
  };
  b.slice(0, start).forEach(word => add('kept', word));
  let [i, j] = [0, 0];
  while (i < n || j < m) {
    if (look && i < n && j < m && x[start + i] === y[start + j]) { add('kept', b[start + j]); i++; j++; }
    else if (i < n && (j === m || !look || longest[(i + 1) * (m + 1) + j] >= longest[i * (m + 1) + j + 1]))
      add('removed', a[start + i++]);
    else add('added', b[start + j++]);
  }
  b.slice(b.length - end).forEach(word => add('kept', word));
  return parts;
}
const tokens = ({tokens}) => tokens + (tokens === 1 ? ' token' : ' tokens');

// A box for each name, all checked, and the names that are checked now.
function boxes(id, names) {
  for (const name of names) {
    const box = document.createElement('input');
    Object.assign(box, {type: 'checkbox', value: name, defaultChecked: true});
    $(id).append(element('label', '', box, name));
  }
}
const checked = id => new Set([...$(id).querySelectorAll('input:checked')].map(box => box.value));

// Shows the page of the rows that is turned to. Returns where its first row is, how many it shows, and how many pages
// there are.
function showPage(id, rows, card, empty) {
  const pages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
  page = Math.min(page, pages - 1);
  const from = page * PER_PAGE;
  const part = rows.slice(from, from + PER_PAGE);
  $(id).replaceChildren(...part.map(card));
  if (!part.length) $(id).append(element('p', 'empty', empty));
  $('previous').disabled = page === 0;
  $('next').disabled = page === pages - 1;
  return {from, length: part.length, pages};
}
// The address says what is shown: behind the view, "#samples" or "#", each filter that is not as at first.
const view = () => location.hash.split('?')[0] || '#';
const addressOf = (view, filters) => view + (filters.size ? '?' + filters : '');
const controls = () => [...$('filters').elements].filter(control => control.matches('input, select'));
const valueOf = control => control.type === 'checkbox' ? control.checked : control.value;
const atFirst = new Map();

function filters() {
  const found = new URLSearchParams();
  for (const control of controls()) {
    if (valueOf(control) === atFirst.get(control)) continue;
    if (control.type === 'checkbox') found.append('without', control.value);
    else found.set(control.id, control.value);
  }
  if (page) found.set('page', page + 1);
  return found;
}
function readAddress() {
  const wanted = new URLSearchParams(location.hash.split('?').slice(1).join('?'));
  for (const control of controls()) {
    if (control.type === 'checkbox') control.checked = !wanted.getAll('without').includes(control.value);
    else {
      control.value = wanted.get(control.id) ?? atFirst.get(control);
      if (control.selectedIndex === -1) control.value = atFirst.get(control);
      control.dispatchEvent(new Event('input'));  // for what depends on it; the form does not hear it
    }
  }
  page = Math.max(1, parseInt(wanted.get('page')) || 1) - 1;
  draw();
}
// A link to one sample of the view, found by its id.
function linkTo(view, id) {
  const made = element('a', 'link', id);
  made.href = addressOf(view, new URLSearchParams({text: id}));
  return made;
}
// `draw` is the page's own; `inView` says whether the address is of what the filters are for.
function drawAndSay() { draw(); history.replaceState(null, '', addressOf(view(), filters())); }
function start(afterTurning, inView = () => true) {
  const turn = by => { page += by; drawAndSay(); afterTurning(); };
  for (const control of controls()) atFirst.set(control, valueOf(control));
  $('filters').addEventListener('input', () => { page = 0; drawAndSay(); });
  $('filters').addEventListener('submit', event => event.preventDefault());
  $('previous').onclick = () => turn(-1);
  $('next').onclick = () => turn(1);
  addEventListener('hashchange', () => { if (inView()) readAddress(); });
  readAddress();
}
