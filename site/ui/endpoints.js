// Endpoints by namespace: a list of namespaces, and the endpoints that the search selects.
import { h } from './dom.js';
import { count, labels, number } from './format.js';
import { matcher, namespaces } from './filter.js';
import { button, empty, fact, hostLink, iconButton, searchField, table } from './parts.js';

export const title = 'Endpoints';
export const initial = () => ({ endpointQuery: '', namespace: null, endpoint: null });

let memory = { list: null, query: '', rows: [], spaces: [] };

// selected has the endpoints that match the search. The last result is kept, since scrolling asks again and again.
function selected(s) {
	const { list } = s.endpoints;
	if (memory.list !== list || memory.query !== s.endpointQuery) {
		const match = matcher(s.endpointQuery);
		const rows = s.endpointQuery.trim() ? list.filter((e) => match(e.text)) : list;
		memory = { list, query: s.endpointQuery, rows, spaces: namespaces(rows) };
	}
	return memory;
}

export function render(s) {
	const { rows: all, spaces } = selected(s);
	const rows = s.namespace === null ? all : all.filter((e) => (e.namespace ?? '') === s.namespace);
	const chosen = s.endpoints.list.find((e) => e.id === s.endpoint);
	return [
		h('div', { class: 'toolbar' }, searchField('endpointSearch', 'Find by name, label, address or host', s.endpointQuery, { class: 'wide' }),
			h('p', { class: 'summary', role: 'status' }, `${count(rows.length, 'endpoint')} in ${count(s.namespace === null ? spaces.length : 1, 'namespace')}`)),
		h('div', { class: `threefold${chosen ? ' open' : ''}` },
			h('nav', { class: 'card side', 'aria-label': 'Namespaces' }, h('ul', {},
				h('li', { 'data-key': 'all' }, space('All namespaces', '*', all.length, s.namespace === null)),
				spaces.map((n) => h('li', { 'data-key': `n ${n.name}` }, space(n.name || '(none)', `=${n.name}`, n.many, s.namespace === n.name))))),
			table({
				name: 'endpoints', label: 'Endpoints', state: s, rows, keyOf: (e) => e.id, click: 'endpoint', selected: s.endpoint,
				columns: [['Name', 'grow'], ['Namespace', 'grow'], ['Addresses', 'grow mono'], ['Host', 'grow'], ['Labels', 'grow tags']],
				cells: (e) => [h('strong', {}, e.name || e.id), e.namespace ?? '', (e.addresses ?? []).join('  '), e.host, labels(e.labels).map((l) => h('span', { class: 'tag' }, l))],
				note: s.endpoints.list.length ? empty('No endpoint matches.') : empty('The network has no endpoints yet.', 'Pods and containers appear here as soon as they are attached.'),
			}),
			chosen ? detail(chosen) : null),
	];
}

const space = (name, arg, many, on) => h('button', { type: 'button', class: 'space', 'data-click': 'namespace', 'data-arg': arg, 'aria-pressed': String(on) }, h('span', {}, name), h('span', { class: 'quiet' }, number(many)));

function detail(e) {
	return h('aside', { class: 'panel card', 'aria-label': e.full, 'data-key': `endpoint ${e.id}` },
		h('header', {}, h('h2', {}, e.full), iconButton('close', 'Close', 'endpoint', e.id)),
		h('dl', { class: 'facts' },
			fact('Addresses', h('span', { class: 'mono' }, (e.addresses ?? []).join(', '))),
			fact('Host', hostLink(e.peer, e.host)),
			fact('Id', h('code', {}, e.id)),
			fact('Labels', labels(e.labels).length ? labels(e.labels).map((l) => h('span', { class: 'tag' }, l)) : 'none')),
		h('div', { class: 'buttons' }, button('What can it reach?', 'askFrom', e.full), button('Who can reach it?', 'askTo', e.full), button('Its flows', 'flowsOf', e.full)));
}

export function actions(app) {
	const s = app.state;
	return {
		endpointSearch: (_, event) => {
			s.endpointQuery = event.target.value;
			s.namespace = null;
			resetScroll(s);
		},
		namespace: (arg) => {
			s.namespace = arg === '*' ? null : arg.slice(1);
			resetScroll(s);
		},
		endpoint: (id) => { s.endpoint = s.endpoint === id ? null : id; },
		openEndpoint: (id) => {
			Object.assign(s, { endpoint: id, endpointQuery: '', namespace: s.endpoints.list.find((e) => e.id === id)?.namespace ?? null });
			app.go('endpoints');
		},
	};
}

function resetScroll(s) {
	s.scroll.endpoints = 0;
	const el = document.querySelector('[data-scroll="endpoints"]');
	if (el) el.scrollTop = 0;
}
