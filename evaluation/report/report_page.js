
const TRUTH = '\0truth';
const KINDS = {win: 'wins', loss: 'loses', tie: 'ties', flip: 'flips', none: 'not judged'};
const rows = data;
const count = number => number.toLocaleString('en');
const unique = values => [...new Set(values)];
const answers = rows.flatMap(row => row.answers);
const models = unique(answers.map(answer => answer.model));
const decodings = unique(answers.map(answer => answer.decoding));
const GOODNESS = ['good', 'neutral', 'bad'];
const labels = unique(answers.flatMap(answer => answer.marks)
  .sort((a, b) => GOODNESS.indexOf(a.kind) - GOODNESS.indexOf(b.kind)).map(mark => mark.label));
const opponents = unique(answers.flatMap(answer => answer.outcomes.map(outcome => outcome.against)));
const lower = new Map(rows.map(row => [row, [row.id, row.prompt, row.truth].join('\n').toLowerCase()]));
for (const answer of answers) lower.set(answer, answer.text.toLowerCase());

// A single opponent is named once, above the samples.
const spoken = (kind, against) => KINDS[kind] + (opponents.length > 1 ? ' against ' + against : '');
// What an answer is like: each property is something to filter by.
function properties(answer) {
  const found = answer.outcomes.map(outcome => spoken(outcome.kind, outcome.against));
  found.push(...answer.marks.map(mark => mark.label));
  if (answer.cut) found.push('cut at the limit');
  return found;
}
const withDecoding = (row, decoding) => row.answers.filter(answer => !decoding || answer.decoding === decoding);
const key = (answer, property) => JSON.stringify([answer.model, property]);

function counts(decoding) {
  const found = new Map();
  for (const row of rows) {
    const here = new Set(withDecoding(row, decoding).flatMap(a => properties(a).map(property => key(a, property))));
    for (const name of here) found.set(name, (found.get(name) ?? 0) + 1);
  }
  return found;
}
function outcomeChoices() {
  const found = counts($('decoding').value);
  const order = unique([...opponents.flatMap(against => Object.keys(KINDS).map(kind => spoken(kind, against))),
    ...labels, 'cut at the limit']);
  for (const [id, everything] of [['outcome', 'all prompts'], ['second', 'nothing else']]) {
    const chosen = $(id).value;
    const groups = models.map(model => {
      const group = element('optgroup', '');
      group.label = model;
      for (const property of order) {
        const value = JSON.stringify([model, property]);
        if (found.has(value)) group.append(new Option(model + ' ' + property + ' (' + count(found.get(value)) + ')', value));
      }
      return group;
    });
    $(id).replaceChildren(new Option(everything, ''), ...groups.filter(group => group.children.length));
    $(id).value = chosen;
    if ($(id).selectedIndex < 0) $(id).value = '';
  }
}
// How much the answers that are shown differ, by the same decoding: 2 in what was found of them, 1 in words, 0 not.
function difference(shown) {
  let most = 0;
  for (const decoding of unique(shown.map(answer => answer.decoding))) {
    const ours = shown.filter(answer => answer.decoding === decoding);
    if (unique(ours.map(answer => JSON.stringify(properties(answer)))).length > 1) return 2;
    if (unique(ours.map(answer => answer.text.trim())).length > 1) most = 1;
  }
  return most;
}
function selected() {
  const needle = $('text').value.trim();
  const pattern = needle.toLowerCase();
  const on = checked('models-shown');
  const wanted = [$('outcome').value, $('second').value].filter(value => value);
  const found = [];
  for (const row of rows) {
    const here = withDecoding(row, $('decoding').value);
    const names = wanted.length ? new Set(here.flatMap(a => properties(a).map(property => key(a, property)))) : null;
    if (!wanted.every(value => names.has(value))) continue;
    const shown = here.filter(answer => on.has(answer.model));
    if (pattern && ![row, ...shown].some(part => lower.get(part).includes(pattern))) continue;
    found.push({row, shown});
  }
  if ($('order').value === 'differing') {
    const differences = new Map(found.map(({row, shown}) => [row, difference(shown)]));
    found.sort((a, b) => differences.get(b.row) - differences.get(a.row));
  }
  return {found, needle};
}
function badge(outcome) {
  const made = element('span', 'badge ' + outcome.kind, spoken(outcome.kind, outcome.against));
  if (outcome.reason) made.append(': ' + outcome.reason);
  if (outcome.verdicts) made.append(element('b', '', [...outcome.verdicts].join(' ')));
  return made;
}
// The text that an answer's words are compared with, "" for none; no answer is compared with itself.
function besides(answer, row) {
  const name = $('beside').value;
  if (name === TRUTH) return row.truth;
  if (!name || name === answer.model) return '';
  return row.answers.find(other => other.model === name && other.decoding === answer.decoding)?.text ?? '';
}
function answerCard(answer, row, needle, severalDecodings) {
  const badges = element('p', 'badges', ...answer.outcomes.map(badge));
  for (const mark of answer.marks) {
    // What explains a mark opens at it: a pointer that rests is nothing that a finger or a keyboard has.
    badges.append(mark.tip
      ? element('details', 'badge ' + mark.kind, element('summary', '', mark.label), element('span', '', mark.tip))
      : element('span', 'badge ' + mark.kind, mark.label));
  }
  if (answer.cut) badges.append(element('span', 'badge none', 'cut at the limit'));
  return element('section', 'answer',
    element('h3', '', answer.model, severalDecodings ? element('span', '', ' ' + answer.decoding) : null),
    badges.children.length ? badges : null,
    besides(answer, row) ? compared(answer.text, besides(answer, row), needle, false) : marked(answer.text, needle),
    element('p', 'facts', tokens(answer)));
}
function card({row, shown}, needle) {
  const prompt = element('div', '', element('h3', '', 'Prompt'), element('p', 'id', linkTo('#samples', row.id)),
    marked(row.prompt, needle));
  const truth = element('div', 'truth', element('h3', '', 'Ground truth'), marked(row.truth, needle));
  const several = decodings.length > 1 && !$('decoding').value;
  return element('article', '', element('div', 'given', prompt, truth),
    element('div', 'answers', ...shown.map(answer => answerCard(answer, row, needle, several))));
}
function draw() {
  const {found, needle} = selected();
  const {pages} = showPage('list', found, row => card(row, needle), 'No prompt fits. Change the search or what is shown.');
  $('where').textContent = count(found.length) + ' of ' + count(rows.length) + (rows.length === 1 ? ' prompt' : ' prompts');
  // Coming back from the overview shows the same.
  document.querySelector('header nav a[href^="#samples"]').href = addressOf('#samples', filters());
  $('page').textContent = 'page ' + count(page + 1) + ' of ' + count(pages);
}
function showView() {
  const samples = view() === '#samples';
  $('samples').hidden = !samples;
  $('overview').hidden = samples;
  for (const link of document.querySelectorAll('header nav a')) {
    if (link.hash.startsWith('#samples') === samples) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  scrollTo(0, 0);
}

// Tables: sorted by a click on a heading, and copied as a text.

const numberOf = text => parseFloat(text.replace('\u2212', '-').replace(/,/g, ''));
const valueIn = cell => [...cell.childNodes].filter(node => !node.matches?.('.error'))
  .map(node => node.textContent).join('').trim();
// A table as rows of cells {value, error, best}, headings first, in the order that is shown.
function cellsOf(table) {
  return [...table.rows].map(row => [...row.cells].map(cell => ({
    value: valueIn(cell), error: cell.querySelector('.error')?.textContent.replace('\u00b1', '').trim() ?? '',
    best: cell.classList.contains('best'), label: cell.matches('.label, tbody th'),
  })));
}
const withError = (cell, sign) => cell.value + (cell.error && sign + cell.error);
const FORMATS = {
  Markdown(rows) {
    const shown = cell => withError(cell, ' \u00b1 ').replace(/[\\|*`<[\]]/g, '\\$&');
    const lines = rows.map(row => row.map(cell => cell.best ? '**' + shown(cell) + '**' : shown(cell)));
    lines.splice(1, 0, rows[0].map(cell => cell.label ? '---' : '--:'));
    return lines.map(line => '| ' + line.join(' | ') + ' |\n').join('');
  },
  LaTeX(rows) {
    const signs = {'\\': '\\textbackslash{}', '~': '\\textasciitilde{}', '^': '\\textasciicircum{}',
      '\u2212': '$-$', '\u00b1': '$\\pm$',
      '<': '$<$', '>': '$>$', '|': '$|$', '\u2013': '--'};
    const shown = cell => withError(cell, ' \u00b1 ')
      .replace(/[\\~^\u2212\u00b1<>|\u2013&%$#_{}]/g, sign => signs[sign] ?? '\\' + sign);
    const lines = rows.map(row =>
      row.map(cell => cell.best ? '\\textbf{' + shown(cell) + '}' : shown(cell)).join(' & ') + ' \\\\');
    const columns = rows[0].map(cell => cell.label ? 'l' : 'r').join('');
    return ['\\begin{tabular}{' + columns + '}', '\\toprule', lines[0], '\\midrule',
      ...lines.slice(1), '\\bottomrule', '\\end{tabular}', ''].join('\n');
  },
  // Standard errors in columns of their own, so that each cell is one number.
  CSV(rows) {
    const quoted = text => /[",\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
    const having = rows[0].map((_, i) => rows.some(row => row[i].error));
    return rows.map((row, place) => row.flatMap((cell, i) => {
      const value = cell.value.replace('\u2212', '-');
      return having[i] ? [value, place ? cell.error : value + ' \u00b1'] : [value];
    }).map(quoted).join(',') + '\r\n').join('');
  },
};
async function copy(text) {
  try { await navigator.clipboard.writeText(text); } catch {
    // Where a page may not write there by itself, what is selected can still be copied.
    const area = element('textarea', '');
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}
function sortable(table) {
  const inOrder = [...table.tBodies[0].rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = element('button', 'sort', heading.textContent);
    button.type = 'button';
    // What the column is stands below the table, and is read out where the button is reached.
    const meaning = heading.getAttribute('aria-describedby');
    if (meaning) button.setAttribute('aria-describedby', meaning);
    heading.removeAttribute('aria-describedby');
    heading.replaceChildren(button);
    const text = row => valueIn(row.cells[column]);
    const isNumber = inOrder.some(row => !isNaN(numberOf(text(row)))) && !heading.matches('.label');
    const compare = (a, b) => isNumber ? numberOf(a) - numberOf(b) : a.localeCompare(b, 'en', {numeric: true});
    // The larger ones first, then the smaller ones, then as it was; words the other way round.
    const ways = isNumber ? ['descending', 'ascending', null] : ['ascending', 'descending', null];
    button.onclick = () => {
      const way = ways[(ways.indexOf(heading.getAttribute('aria-sort')) + 1) % 3];
      for (const other of headings) other.removeAttribute('aria-sort');
      if (way) heading.setAttribute('aria-sort', way);
      table.classList.toggle('sorted', Boolean(way));
      const none = row => isNumber ? isNaN(numberOf(text(row))) : !text(row);
      table.tBodies[0].append(...(way ? inOrder.toSorted((a, b) =>
        none(a) - none(b) || (none(a) ? 0 : (way === 'ascending' ? 1 : -1) * compare(text(a), text(b)))) : inOrder));
    };
  });
}
function copyable(table) {
  const name = table.closest('section').querySelector('h2').textContent;
  const said = element('span', 'soft', '');
  said.setAttribute('role', 'status');
  const buttons = Object.entries(FORMATS).map(([format, write]) => {
    const button = element('button', 'copy', format);
    button.type = 'button';
    button.setAttribute('aria-label', 'Copy ' + name + ' as ' + format);
    button.onclick = async () => { await copy(write(cellsOf(table))); said.textContent = 'Copied as ' + format + '.'; };
    return button;
  });
  table.closest('.scroll').after(element('p', 'copies', element('span', 'soft', 'Copy as'), ...buttons, said));
}
for (const table of document.querySelectorAll('table.numbers')) { sortable(table); copyable(table); }

// Samples.

if (rows.length) startSamples();
function startSamples() {
  $('decoding').append(...decodings.map(name => new Option(name, name)), new Option('all', ''));
  $('decodings').hidden = decodings.length < 2;
  $('judged').hidden = !opponents.length;
  $('opponents').textContent = opponents.length > 1 ? 'the opponent named' : opponents[0];
  boxes('models-shown', models);
  $('beside').append(new Option('nothing', ''), new Option('the ground truth', TRUTH),
    ...models.map(name => new Option(name, name)));
  $('beside').value = models.length > 1 ? models[0] : TRUTH;
  outcomeChoices();
  $('decoding').addEventListener('input', outcomeChoices);
  addEventListener('hashchange', showView);
  showView();
  start(() => $('where').scrollIntoView(), () => view() === '#samples');
}
