// Who may reach whom: a question about two ends, and the matrix.
import { Refusal } from './api.js';
import { h } from './dom.js';
import { count } from './format.js';
import { matcher, question } from './filter.js';
import { badge, button, empty, icon, memo } from './parts.js';
import { answer } from './explain.js';

export const title = 'Access';
export const initial = () => ({
	ask: { from: '', to: '', port: '', fault: '' }, answer: null, asking: false,
	suggest: { field: '', at: -1 }, pair: null, matrix: null, matrixFault: '', matrixSerial: 0, cell: [0, 0], ends: null,
});

const kinds = { all: ['ok', 'full', 'all ports'], some: ['warn', 'half', 'some ports'], none: ['bad', 'bad', 'nothing'] };
const kindOf = (a) => kinds[a?.kind] ?? ['idle', 'idle', 'unknown'];

export function render(s) {
	return [
		h('section', { class: 'card ask', 'aria-labelledby': 'ask-title' }, h('h2', { id: 'ask-title' }, 'Can one reach the other?'), form(s), h('div', { 'aria-live': 'polite' }, answer(s))),
		h('section', { class: 'card matrixcard', 'aria-labelledby': 'matrix-title' }, matrixHead(s), s.ends ? ends(s) : null,
			s.matrixFault ? h('p', { class: 'note bad' }, s.matrixFault) : null,
			s.matrix ? matrix(s) : s.matrixFault ? null : h('p', { class: 'loading' }, 'Asking the agent …')),
	];
}

function form(s) {
	return h('form', { class: 'askform', 'data-submit': 'ask' },
		endField(s, 'from', 'From'),
		h('span', { class: 'askarrow' }, icon('arrow', 18)),
		endField(s, 'to', 'To'),
		h('label', { class: 'field short' }, h('span', {}, 'Port'), h('input', { name: 'port', value: s.ask.port, placeholder: 'any, 5432, 53/udp, icmp', 'data-input': 'askPort', autocomplete: 'off', 'aria-describedby': s.ask.fault ? 'ask-fault' : null, 'aria-invalid': s.ask.fault ? 'true' : null })),
		h('button', { type: 'submit', class: 'button primary', disabled: s.asking }, s.asking ? 'Asking …' : 'Explain'),
		s.ask.fault ? h('p', { class: 'note bad whole', id: 'ask-fault' }, s.ask.fault) : null);
}

// endField is a field with suggestions: endpoints whose text matches.
function endField(s, field, name) {
	const open = s.suggest.field === field, list = open ? suggestions(s, field) : [];
	return h('div', { class: 'field', 'data-key': field },
		h('label', { for: `ask-${field}` }, name),
		h('input', {
			id: `ask-${field}`, name: field, value: s.ask[field], placeholder: 'NAMESPACE/NAME or an address', autocomplete: 'off', spellcheck: 'false', role: 'combobox',
			'aria-expanded': String(list.length > 0), 'aria-controls': `list-${field}`, 'aria-autocomplete': 'list', 'aria-activedescendant': open && s.suggest.at >= 0 && list[s.suggest.at] ? `option-${field}-${s.suggest.at}` : null,
			'data-input': 'askEnd', 'data-arg': field, 'data-keys': 'suggestKeys', 'data-blur': 'suggestClose',
		}),
		h('ul', { class: 'suggestions', role: 'listbox', id: `list-${field}`, 'aria-label': `${name}: endpoints`, hidden: list.length === 0 },
			list.map((e, i) => h('li', { role: 'option', id: `option-${field}-${i}`, 'aria-selected': String(i === s.suggest.at), 'data-drag': 'suggestPick', 'data-arg': `${field} ${e.full}` }, h('span', {}, e.full), h('span', { class: 'quiet' }, ` ${e.addresses?.[0] ?? ''} on ${e.host}`)))));
}

function suggestions(s, field) {
	const match = matcher(s.ask[field]), out = [];
	for (const e of s.endpoints.list) {
		if (match(e.text)) out.push(e);
		if (out.length === 8) break;
	}
	return out.length === 1 && out[0].full === s.ask[field] ? [] : out;
}

function matrixHead(s) {
	return h('header', {}, h('h2', { id: 'matrix-title' }, s.pair ? ['Who may reach whom: ', h('span', { class: 'mono' }, `${s.pair.from} → ${s.pair.to}`)] : 'Who may reach whom, by namespace'),
		s.pair ? button([icon('back', 14), ' All namespaces'], 'matrixAll') : null,
		h('ul', { class: 'key', 'aria-label': 'Signs' }, Object.values(kinds).map(([kind, shape, text]) => h('li', {}, badge(kind, text, shape)))));
}

function matrix(s) {
	const m = s.matrix, rows = m.rows ?? [], columns = m.columns ?? [];
	if (rows.length === 0 || columns.length === 0) return empty('There are no endpoints to compare yet.');
	const wide = columns.length <= 8;
	return [
		h('p', { class: 'quiet' }, s.pair ? 'Each row and column is a group of endpoints that policies treat alike. Choose a cell to ask about two of them.' : 'Rows are sources, columns destinations. Choose a cell to see its groups of endpoints.'),
		h('div', { class: 'matrixroom', tabindex: '0', role: 'region', 'aria-label': 'Matrix' }, memo('div', { 'data-key': 'matrix', class: `matrix ${wide ? 'wide' : 'narrow'}`, role: 'grid', 'aria-label': 'Who may reach whom', 'data-keys': 'matrixKeys', style: { '--columns': columns.length } }, `${s.matrixSerial} ${s.cell}`, () => [
			h('div', { role: 'row', class: 'mrow' }, h('div', { role: 'columnheader', class: 'corner' }, 'from ↓   to →'), columns.map((c) => h('div', { role: 'columnheader', class: 'mcol', 'data-tip': groupText(c) }, h('span', {}, c.name || '(none)')))),
			rows.map((r, i) => h('div', { role: 'row', class: 'mrow' }, h('div', { role: 'rowheader', class: 'mhead', 'data-tip': groupText(r) }, h('span', {}, r.name || '(none)'), h('span', { class: 'quiet' }, r.endpoints)),
				columns.map((c, j) => cell(s, r, c, m.cells?.[i]?.[j], i, j, wide)))),
		])),
		m.more ? h('p', { class: 'quiet' }, `${count(m.more, 'more group')} left out.`) : null,
	];
}

const groupText = (g) => `${g.name}: ${count(g.endpoints, 'endpoint')}${(g.examples ?? []).length ? `, such as ${g.examples.slice(0, 4).join(', ')}` : ''}`;

function cell(s, r, c, a, i, j, wide) {
	const [kind, shape, text] = kindOf(a), ports = a?.ports || text;
	return h('div', { role: 'gridcell', class: `mcell ${kind}`, tabindex: s.cell[0] === i && s.cell[1] === j ? '0' : '-1', 'data-click': 'matrixCell', 'data-arg': `${i} ${j}`, 'aria-label': `${r.name} to ${c.name}: ${ports}`, 'data-tip': `${r.name} → ${c.name}: ${ports}` },
		icon(shape, 14), wide ? h('span', { class: 'ports' }, ports) : null);
}

// ends lets the user choose two endpoints of a cell's groups.
function ends(s) {
	const pick = (name, field, list) => h('label', { class: 'field' }, h('span', {}, name), h('select', { 'data-change': 'pickEnd', 'data-arg': field, value: s.ask[field] }, list.map((e) => h('option', { value: e, selected: e === s.ask[field] }, e))));
	return h('div', { class: 'ends' }, pick('From', 'from', s.ends.from), pick('To', 'to', s.ends.to), button('Explain', 'askNow', '', { class: 'button primary' }), h('span', { class: 'quiet' }, 'The answer is above.'));
}

// poll asks for the matrix.
export async function poll(app) {
	const s = app.state, pair = s.pair;
	try {
		const m = await app.ask('matrix', pair ? { from: pair.from, to: pair.to } : {});
		if (s.pair !== pair) return;
		if (JSON.stringify(m) !== JSON.stringify(s.matrix)) s.matrixSerial++;
		Object.assign(s, { matrix: m, matrixFault: '' });
	} catch (err) {
		if (!(err instanceof Refusal)) throw err;
		s.matrixFault = err.message;
	}
	app.show();
}

export const enter = (app) => poll(app);

async function run(app) {
	const s = app.state, q = question(s.ask.port), from = s.ask.from.trim(), to = s.ask.to.trim();
	s.ask.fault = !from || !to ? 'Say from which endpoint and to which one: NAMESPACE/NAME, or an address.' : q ? '' : `"${s.ask.port}" is no port: want 80, 80/tcp, 53/udp or icmp, or nothing for all ports.`;
	if (s.ask.fault) return;
	Object.assign(s, { asking: true, suggest: { field: '', at: -1 } });
	app.show();
	try {
		const reply = await app.ask('explain', { source: from, destination: to, ...q });
		s.answer = { ...reply, from, to };
	} catch (err) {
		if (!(err instanceof Refusal)) throw err;
		s.answer = { fault: err.message };
	}
	s.asking = false;
	app.show();
}

export function actions(app) {
	const s = app.state;
	const set = (values) => {
		Object.assign(s.ask, values);
		for (const [name, value] of Object.entries(values)) {
			const el = document.getElementById(`ask-${name}`);
			if (el) el.value = value; // the field may have the focus
		}
	};
	return {
		ask: (_, event) => { event.preventDefault(); run(app); },
		askNow: () => run(app),
		askEnd: (field, event) => { s.ask[field] = event.target.value; s.suggest = { field, at: -1 }; },
		askPort: (_, event) => { s.ask.port = event.target.value; },
		askFrom: (name) => { set({ from: name, to: '', port: '' }); s.answer = null; app.go('access'); },
		askTo: (name) => { set({ from: '', to: name, port: '' }); s.answer = null; app.go('access'); },
		askBoth: (arg) => { const [from, to, port] = arg.split(' '); set({ from, to }); s.ask.port = port; app.go('access'); run(app); },
		suggestPick: (arg, event) => {
			event.preventDefault(); // the field keeps the focus
			const [field, ...name] = arg.split(' ');
			set({ [field]: name.join(' ') });
			s.suggest = { field: '', at: -1 };
		},
		suggestClose: () => { s.suggest = { field: '', at: -1 }; },
		suggestKeys: (field, event) => {
			const list = s.suggest.field === field ? suggestions(s, field) : [];
			if (event.key === 'Escape') s.suggest = { field: '', at: -1 };
			else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
				event.preventDefault();
				const step = event.key === 'ArrowDown' ? 1 : -1;
				s.suggest = { field, at: list.length ? (s.suggest.at + step + list.length) % list.length : 0 };
			} else if (event.key === 'Enter' && list[s.suggest.at]) {
				event.preventDefault();
				set({ [field]: list[s.suggest.at].full });
				s.suggest = { field: '', at: -1 };
			}
		},
		matrixAll: () => open(app, null),
		matrixCell: (arg) => {
			const [i, j] = arg.split(' ').map(Number), row = s.matrix?.rows?.[i], column = s.matrix?.columns?.[j];
			if (!row || !column) return; // another matrix is on its way
			s.cell = [i, j];
			if (!s.pair) { open(app, { from: row.name, to: column.name }); return; }
			const from = row.examples?.length ? row.examples : [row.name], to = column.examples?.length ? column.examples : [column.name];
			s.ends = { from, to };
			set({ from: from[0], to: to.find((e) => e !== from[0]) ?? to[0] });
			run(app);
		},
		pickEnd: (field, event) => set({ [field]: event.target.value }),
		matrixKeys: (_, event) => {
			const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
			if (!step || !s.matrix) return;
			event.preventDefault();
			s.cell = [Math.min(s.matrix.rows.length - 1, Math.max(0, s.cell[0] + step[0])), Math.min(s.matrix.columns.length - 1, Math.max(0, s.cell[1] + step[1]))];
			app.show();
			requestAnimationFrame(() => document.querySelector('.mcell[tabindex="0"]')?.focus());
		},
	};
}

function open(app, pair) {
	Object.assign(app.state, { pair, matrix: null, ends: null, cell: [0, 0] });
	poll(app);
}
