// Health: each problem with its effect and its fix.
import { h } from './dom.js';
import { count, natural, number } from './format.js';
import { condition, nameOf, stateOf } from './model.js';
import { badge, empty, hostLink, icon, prose } from './parts.js';
import { stateBadge } from './mesh.js';

export const title = 'Health';
export const rank = { bad: 0, warn: 1, idle: 2, ok: 3 };

export function render(s) {
	const { hosts, links, totals } = s.model;
	const unwell = hosts.filter((x) => ['bad', 'warn'].includes(condition(x).kind)).sort((a, b) => rank[condition(a).kind] - rank[condition(b).kind] || natural(a.nickname, b.nickname));
	const faults = links.filter((l) => stateOf(l.state).kind === 'bad');
	const relayed = links.filter((l) => l.state === 'relayed').length;
	const ready = hosts.filter((x) => x.ready && !x.error).length;
	return [
		h('ul', { class: 'tiles', 'aria-label': 'At a glance' },
			tile(ready === hosts.length ? 'ok' : 'bad', `${ready} of ${hosts.length}`, 'hosts are ready'),
			tile(totals.problems ? 'warn' : 'ok', number(totals.problems), totals.problems === 1 ? 'problem' : 'problems'),
			tile(faults.length ? 'bad' : 'ok', number(faults.length), faults.length === 1 ? 'tunnel without traffic' : 'tunnels without traffic'),
			tile(relayed ? 'warn' : 'ok', number(relayed), relayed === 1 ? 'tunnel over a relay' : 'tunnels over relays'),
			tile('idle', number(totals.dropped), 'packets dropped by policies')),
		unwell.length === 0 && faults.length === 0 ? h('section', { class: 'card allwell' }, icon('ok', 28), h('div', {}, h('h2', {}, 'All is well'), h('p', { class: 'quiet' }, 'Every host answers, is ready, and reports no problem.'))) : null,
		unwell.slice(0, 100).map((x) => hostCard(s, x)),
		unwell.length > 100 ? h('p', { class: 'quiet' }, `And ${count(unwell.length - 100, 'more host')} with problems.`) : null,
		faults.length ? faultCard(s, faults) : null,
		versions(hosts),
	];
}

const tile = (kind, value, text) => h('li', { class: `tile card ${kind}` }, icon(kind, 18), h('strong', {}, value), h('span', {}, text));

function hostCard(s, x) {
	const c = condition(x);
	return h('section', { class: `card hostcard ${c.kind}`, 'data-key': `host ${x.peer}`, 'aria-label': x.nickname },
		h('header', {}, h('h2', {}, hostLink(x.peer, x.nickname)), badge(c.kind, c.text)),
		x.error ? h('p', {}, prose(x.error)) : null,
		x.notReady ? h('p', {}, prose(x.notReady)) : null,
		(x.problems ?? []).map(problem));
}

// problem shows what is wrong, what follows from it, and what to do.
export function problem(p, i) {
	return h('article', { class: 'problem', 'data-key': `problem ${i} ${p.reason}` },
		h('p', { class: 'what' }, icon('warn', 14), h('strong', {}, prose(p.what))),
		p.effect ? h('p', { class: 'effect' }, h('span', { class: 'effectword' }, 'Effect'), h('span', {}, prose(p.effect))) : null,
		p.fix ? h('p', { class: 'fix' }, h('span', { class: 'fixword' }, 'Fix'), h('span', {}, prose(p.fix))) : null);
}

function faultCard(s, faults) {
	return h('section', { class: 'card', 'aria-labelledby': 'faults-title' }, h('h2', { id: 'faults-title' }, 'Tunnels without traffic'),
		h('table', { class: 'small' }, h('thead', {}, h('tr', {}, ['Between', 'State', 'Why'].map((t) => h('th', { scope: 'col' }, t)))),
			h('tbody', {}, faults.slice(0, 100).map((l) => h('tr', { 'data-key': l.id }, h('th', { scope: 'row' }, hostLink(l.a, nameOf(s.model, l.a)), ' – ', hostLink(l.b, nameOf(s.model, l.b))), h('td', {}, stateBadge(l.state)), h('td', {}, l.info || stateOf(l.state).says))))),
		faults.length > 100 ? h('p', { class: 'quiet' }, `And ${count(faults.length - 100, 'more tunnel')}: see the table of the mesh.`) : null);
}

function versions(hosts) {
	const by = new Map();
	for (const x of hosts) if (!x.error) by.set(x.version || 'unknown', [...(by.get(x.version || 'unknown') ?? []), x]);
	if (by.size === 0) return empty('No host answers.');
	const sorted = [...by].sort((a, b) => b[1].length - a[1].length);
	return h('section', { class: 'card', 'aria-labelledby': 'versions-title' }, h('h2', { id: 'versions-title' }, 'Versions'),
		h('table', { class: 'small' }, h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, 'Version'), h('th', { scope: 'col' }, 'Hosts'))),
			h('tbody', {}, sorted.map(([v, list]) => h('tr', {}, h('th', { scope: 'row' }, h('code', {}, v)), h('td', {}, `${list.length}: `, list.slice(0, 6).map((x, i) => [i ? ', ' : '', hostLink(x.peer, x.nickname)]), list.length > 6 ? ` and ${number(list.length - 6)} more` : ''))))),
		by.size > 1 ? h('p', { class: 'note warn' }, 'The hosts run different versions. That is fine during an upgrade.') : null);
}
