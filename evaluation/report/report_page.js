
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
  return {found, needle};
}
function badge(outcome) {
  const made = element('span', 'badge ' + outcome.kind, spoken(outcome.kind, outcome.against));
  if (outcome.reason) made.append(': ' + outcome.reason);
  if (outcome.verdicts) made.append(element('b', '', [...outcome.verdicts].join(' ')));
  return made;
}
function answerCard(answer, needle, severalDecodings) {
  const badges = element('p', 'badges', ...answer.outcomes.map(badge));
  for (const mark of answer.marks) {
    const made = element('span', 'badge ' + mark.kind, mark.label);
    if (mark.tip) made.title = mark.tip;
    badges.append(made);
  }
  if (answer.cut) badges.append(element('span', 'badge none', 'cut at the limit'));
  return element('section', 'answer',
    element('h3', '', answer.model, severalDecodings ? element('span', '', ' ' + answer.decoding) : null),
    badges.children.length ? badges : null, marked(answer.text, needle),
    element('p', 'facts', tokens(answer)));
}
function card({row, shown}, needle) {
  const prompt = element('div', '', element('h3', '', 'Prompt'), element('p', 'id', row.id), marked(row.prompt, needle));
  const truth = element('div', 'truth', element('h3', '', 'Ground truth'), marked(row.truth, needle));
  const several = decodings.length > 1 && !$('decoding').value;
  return element('article', '', element('div', 'given', prompt, truth),
    element('div', 'answers', ...shown.map(answer => answerCard(answer, needle, several))));
}
function draw() {
  const {found, needle} = selected();
  const {pages} = showPage('list', found, row => card(row, needle), 'No prompt fits. Change the search or what is shown.');
  $('where').textContent = count(found.length) + ' of ' + count(rows.length) + (rows.length === 1 ? ' prompt' : ' prompts');
  $('page').textContent = 'page ' + count(page + 1) + ' of ' + count(pages);
}
function showView() {
  const samples = location.hash === '#samples';
  $('samples').hidden = !samples;
  $('overview').hidden = samples;
  for (const link of document.querySelectorAll('header nav a')) {
    if ((link.hash === '#samples') === samples) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  scrollTo(0, 0);
}

$('decoding').append(...decodings.map(name => new Option(name, name)), new Option('all', ''));
$('decodings').hidden = decodings.length < 2;
$('judged').hidden = !opponents.length;
$('opponents').textContent = opponents.length > 1 ? 'the opponent named' : opponents[0];
boxes('models-shown', models);
outcomeChoices();
$('decoding').addEventListener('input', outcomeChoices);
addEventListener('hashchange', showView);
showView();
start(() => $('where').scrollIntoView());
