
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
function marked(text, needle, className = 'text') {
  const made = element('p', className);
  // Search in the text itself, not in a lower-cased copy, which may be longer.
  const pattern = needle && new RegExp(needle.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'), 'giu');
  let from = 0;
  if (pattern) for (const found of text.matchAll(pattern)) {
    made.append(text.slice(from, found.index), element('mark', '', found[0]));
    from = found.index + found[0].length;
  }
  made.append(text.slice(from));
  return made;
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
// `draw` is the page's own.
function change() { page = 0; draw(); }
function start(afterTurning) {
  const turn = by => { page += by; draw(); afterTurning(); };
  $('filters').addEventListener('input', change);
  $('filters').addEventListener('submit', event => event.preventDefault());
  $('previous').onclick = () => turn(-1);
  $('next').onclick = () => turn(1);
  draw();
}
