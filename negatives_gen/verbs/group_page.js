
const strategies = [...new Set(data.groups.flatMap(g => g.negatives.map(c => c.strategy)))].sort();
const known = new Set(data.groups.map(g => g.id));

const number = (value, digits) => value === null ? '\u2013' : value.toFixed(digits).replace('-', '\u2212');
const perToken = c => c.logp === null || !c.tokens ? null : c.logp / c.tokens;
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
  const on = checked('strategies');
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
      const link = linkTo('#', c.source);
      link.textContent = c.source.slice(0, 12);
      link.title = 'Show group ' + c.source;
      source.append(link);
    } else source.append(c.source.slice(0, 12));
    rest.append(source);
  }
  const text = data.edited.includes(c.strategy) ? compared(c.text, truth.text, needle, true) : marked(c.text, needle);
  return element('li', '', facts, text, rest);
}
function reach(truth) {
  if (truth.reach === null) return '';
  return truth.reach ? element('span', '', 'in reach of the sampler') : element('span', 'cut', 'out of the sampler\'s reach');
}
function card({group, shown}, needle) {
  const truth = element('div', 'truth', element('h2', '', 'Ground truth, rank 0'),
    marked(group.truth.text, needle),
    element('p', 'facts', element('span', '', likelihood(group.truth)), element('span', '', tokens(group.truth)),
      reach(group.truth)));
  const left = element('div', 'left', element('div', 'fixed', element('h2', '', 'Prompt (' + group.split + ')'),
    element('p', 'id', linkTo('#', group.id)), marked(group.prompt, needle, 'text prompt'), truth));
  return element('article', '', left, element('ol', '', ...shown.map(c => candidate(c, group.truth, needle))));
}
function draw() {
  const {rows, needle} = selected();
  const shown = showPage('groups', rows, row => card(row, needle),
    'No group fits. Change the search, split or strategies.');
  $('where').textContent = rows.length === 0 ? 'no groups' :
    (shown.from + 1) + '\u2013' + (shown.from + shown.length) + ' of ' + rows.length;
}
function choices(id, values, chosen) {
  $(id).append(...values.map(value => new Option(value, value, value === chosen, value === chosen)));
}

const of = data.split === 'all' ? ' groups' : ' groups of split ' + data.split;
$('shown').textContent = 'This page holds ' + data.groups.length + ' of ' + data.total + of + '.';
choices('split', ['all', 'train', 'test'], 'all');
choices('signal', data.signals, data.rank_by);
boxes('strategies', strategies);
start(() => scrollTo(0, 0));
