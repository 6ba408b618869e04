// Flows and drops as they come, newest first.
import { Refusal } from './api.js';
import { h } from './dom.js';
import { bytes, clock, count, labels, number, rate } from './format.js';
import { end, host, matcher, merge, port } from './filter.js';
import { badge, button, empty, fact, icon, iconButton, searchField, table } from './parts.js';

export const title = 'Flows';
const nothing = () => ({ known: new Map(), list: [], after: null, hosts: [], fault: '', asked: false });
export const initial = () => ({ flowFilter: { from: '', to: '', port: '', verdict: '' }, flowQuery: '', flows: nothing(), flow: null, paused: null });

const keep = 5000, first = 500;
const verdicts = { allowed: ['ok', 'allowed'], denied: ['bad', 'denied'], audit: ['warn', 'audit'] };
const verdictOf = (f) => verdicts[f.verdict] ?? ['idle', f.verdict];

export function render(s) {
	const match = matcher(s.flowQuery), list = s.paused ?? s.flows.list;
	const rows = s.flowQuery.trim() ? list.filter((f) => match(f.text)) : list;
	const chosen = s.flow && (s.flows.list.find((f) => f.key === s.flow) ?? s.flows.known.get(s.flow));
	return [
		filters(s, rows),
		notes(s),
		h('div', { class: `split${chosen ? ' open' : ''} single` },
			table({
				name: 'flows', label: 'Flows', state: s, rows, keyOf: (f) => f.key, click: 'flow', selected: s.flow, rowClass: (f) => f.verdict,
				columns: [['Time', 'mono'], ['Verdict', 'grow'], ['From', 'grow'], ['To', 'grow'], ['Port', 'mono'], ['Traffic', 'right'], ['Decided by', 'grow']],
				cells: (f) => [clock(new Date(f.at)), badge(...verdictOf(f)), end(f.from, f.source), end(f.to, f.destination), portText(f), traffic(f), f.why || f.policy || ''],
				note: s.flows.asked ? empty('No flow matches.', 'New connections appear here as soon as hosts see them.') : h('p', { class: 'loading' }, s.flows.fault ? '' : 'Asking the hosts …'),
			}),
			chosen ? detail(s, chosen) : null),
	];
}

function filters(s, rows) {
	const f = s.flowFilter;
	const field = (name, text, placeholder) => h('label', { class: 'field' }, h('span', {}, text), h('input', { name, value: f[name], placeholder, 'data-input': 'flowFilter', 'data-arg': name, autocomplete: 'off', spellcheck: 'false' }));
	return h('div', { class: 'toolbar filters', role: 'search', 'aria-label': 'Filter flows' },
		field('from', 'From', 'shop/web, shop/, 10.32.0.0/16'), field('to', 'To', 'name, namespace/ or address'), field('port', 'Port', 'any'),
		h('label', { class: 'field' }, h('span', {}, 'Verdict'), h('select', { 'data-change': 'flowFilter', 'data-arg': 'verdict', value: f.verdict }, [['', 'all'], ['denied', 'denied'], ['allowed', 'allowed'], ['audit', 'audit']].map(([v, t]) => h('option', { value: v, selected: v === f.verdict }, t)))),
		searchField('flowSearch', 'Find text', s.flowQuery),
		h('button', { type: 'button', class: 'button', 'data-click': 'flowPause', 'aria-pressed': String(Boolean(s.paused)) }, icon(s.paused ? 'play' : 'pause', 14), s.paused ? ' Continue' : ' Pause'),
		h('p', { class: 'summary', role: 'status' }, s.paused ? `paused, ${count(Math.max(0, s.flows.list.length - s.paused.length), 'newer flow')}` : count(rows.length, 'flow')));
}

function notes(s) {
	const out = [], off = s.flows.hosts.filter((x) => x.off), silent = s.flows.hosts.filter((x) => x.error), lost = s.flows.hosts.filter((x) => x.lost > 0);
	const names = (list) => list.slice(0, 5).map((x) => x.nickname || x.peer).join(', ') + (list.length > 5 ? ` and ${count(list.length - 5, 'more host')}` : '');
	if (s.flows.fault) out.push(h('p', { class: 'note bad' }, s.flows.fault));
	if (off.length) out.push(h('p', { class: 'note' }, `Flows are off on ${names(off)}: launched with --no-flows.`));
	if (silent.length) out.push(h('p', { class: 'note warn' }, `No answer from ${names(silent)}: ${silent[0].error}`));
	if (lost.length) out.push(h('p', { class: 'note warn' }, `Not seen, since more happened than a host can report: ${number(lost.reduce((n, x) => n + x.lost, 0))} events on ${names(lost)}.`));
	return out.length ? h('div', { class: 'notes' }, out) : null;
}

const portText = (f) => (port(f.destination) && !/^icmp/i.test(f.protocol) ? `${port(f.destination)}/${f.protocol}` : f.protocol);

function traffic(f) {
	if (f.verdict === 'denied') return count(f.sentPackets, 'packet');
	const now = f.sentRate + f.receivedRate;
	return now > 0 ? rate(now) : bytes(f.sentBytes + f.receivedBytes);
}

function detail(s, f) {
	const party = (e, at) => [end(e, at), h('div', { class: 'quiet mono' }, at), e.peer ? h('div', { class: 'quiet' }, `on ${e.peer}`) : h('div', { class: 'quiet' }, 'outside the network'), labels(e.labels).map((l) => h('span', { class: 'tag' }, l))];
	const name = (e, at) => (e.name ? end(e, at) : host(at));
	const asked = `${name(f.from, f.source)} ${name(f.to, f.destination)} ${/^icmp/i.test(f.protocol) ? 'icmp' : `${port(f.destination)}/${f.protocol.toLowerCase()}`}`;
	return h('aside', { class: 'panel card', 'aria-label': 'Flow', 'data-key': `flow ${f.key}` },
		h('header', {}, h('h2', {}, 'Flow'), iconButton('close', 'Close', 'flow', f.key)),
		h('p', { class: 'badges' }, badge(...verdictOf(f)), f.ended ? badge('idle', 'ended') : null),
		f.why ? h('p', { class: `note ${f.verdict === 'denied' ? 'bad' : f.verdict === 'audit' ? 'warn' : ''}` }, f.why) : null,
		h('dl', { class: 'facts' },
			fact('From', party(f.from, f.source)), fact('To', party(f.to, f.destination)),
			f.service ? fact('Asked for', h('span', { class: 'mono' }, f.service)) : null,
			fact('Protocol', portText(f)),
			f.policy ? fact('Policy', `${f.policy} ${f.rule ?? ''}`) : null,
			f.direction ? fact('Denied at', f.direction) : null,
			fact('Sent', `${bytes(f.sentBytes)}, ${count(f.sentPackets, 'packet')}${f.sentRate ? `, ${rate(f.sentRate)}` : ''}`),
			fact('Received', `${bytes(f.receivedBytes)}, ${count(f.receivedPackets, 'packet')}${f.receivedRate ? `, ${rate(f.receivedRate)}` : ''}`),
			fact('Since', clock(new Date(f.start))), fact('Last change', clock(new Date(f.last))), fact('Seen by', (f.seen ?? [f.nickname || f.peer]).join(' and '))),
		h('div', { class: 'buttons' }, button('Explain', 'askBoth', asked, { class: 'button primary' })));
}

// poll asks for the flows that changed since the last answer.
export async function poll(app) {
	const s = app.state, flows = s.flows, f = s.flowFilter;
	const request = { allHosts: true, from: f.from.trim(), to: f.to.trim(), port: Number(f.port) || 0, verdict: f.verdict };
	try {
		const reply = await app.ask('flows', flows.after ? { ...request, after: flows.after } : { ...request, most: first });
		if (s.flows !== flows) return; // the filter changed meanwhile
		flows.list = merge(flows.known, reply.flows ?? [], keep);
		flows.hosts = reply.hosts ?? [];
		// A host that does not answer keeps its place, so that nothing is missed when it answers again.
		flows.after = { ...flows.after };
		for (const x of flows.hosts) if (!x.error) flows.after[x.peer] = x.next;
		flows.fault = '';
	} catch (err) {
		if (!(err instanceof Refusal)) throw err;
		flows.fault = err.message;
	}
	flows.asked = true;
	app.show();
}

let typing = 0;

export function actions(app) {
	const s = app.state;
	return {
		flowSearch: (_, event) => { s.flowQuery = event.target.value; },
		flowFilter: (name, event) => {
			s.flowFilter[name] = event.target.value;
			clearTimeout(typing);
			typing = setTimeout(() => {
				Object.assign(s, { flows: nothing(), paused: null });
				poll(app);
			}, event.type === 'change' ? 0 : 350);
		},
		flow: (key) => { s.flow = s.flow === key ? null : key; },
		flowPause: () => { s.paused = s.paused ? null : [...s.flows.list]; },
		flowsOf: (name) => {
			Object.assign(s, { flowFilter: { from: '', to: '', port: '', verdict: '' }, flowQuery: name, flows: nothing(), paused: null });
			app.go('flows');
		},
	};
}
