// The panel beside the mesh: one host, one tunnel, or all hosts.
import { h } from './dom.js';
import { bytes, count, number, percent, rate, roundTrip } from './format.js';
import { condition, join, linkId, nameOf, stateOf } from './model.js';
import { badge, empty, fact, hostLink, iconButton, memo, versions } from './parts.js';
import { problem, rank } from './health.js';
import { stateBadge } from './mesh.js';

let last = {};

// allLinks has the links of the picture, and those that only the report of the selected host has. The last result is
// kept, since moving the picture asks again and again.
export function allLinks(s) {
	if (last.model !== s.model || last.report !== s.report) last = { model: s.model, report: s.report, links: collect(s) };
	return last.links;
}

function collect({ model: m, report }) {
	if (!report?.report) return m.links;
	const links = new Map(m.byLink);
	for (const c of report.report.router?.connections ?? []) {
		if (m.byId.has(c.peer) && !links.has(linkId(report.peer, c.peer))) join(links, report.peer, c);
	}
	return [...links.values()];
}

export function panel(s) {
	const host = s.selected?.host && s.model.byId.get(s.selected.host);
	const link = s.selected?.link && allLinks(s).find((l) => l.id === s.selected.link);
	if (host) return frame(host.nickname, hostPanel(s, host));
	if (link) return frame(`${nameOf(s.model, link.a)} – ${nameOf(s.model, link.b)}`, linkPanel(s, link));
	return h('aside', { class: 'panel card', 'aria-label': 'Hosts', 'data-key': 'hosts' }, overview(s), h('h2', {}, 'Hosts'), hostList(s));
}

const frame = (title, body) => h('aside', { class: 'panel card', 'aria-label': title, 'data-key': `panel ${title}` },
	h('header', {}, h('h2', {}, title), iconButton('close', 'Close', 'closePanel')), body);

function overview(s) {
	const t = s.model.totals, self = s.model.hosts.find((x) => x.self);
	return h('dl', { class: 'facts' },
		s.network.cluster ? fact('Cluster', h('code', {}, s.network.cluster)) : null,
		self ? fact('Seen from', hostLink(self.peer, self.nickname)) : null,
		fact('Answering', `${t.answering} of ${count(t.hosts, 'host')}`),
		fact('Traffic', rate(s.model.links.reduce((n, l) => n + l.sent + l.received, 0))),
		fact('Dropped', `${count(t.dropped, 'packet')} by policies`));
}

const listVersion = versions();

function hostList(s) {
	const q = s.meshQuery.toLowerCase().trim();
	const hosts = s.model.hosts.filter((x) => `${x.nickname} ${x.peer} ${(x.underlay ?? []).join(' ')}`.toLowerCase().includes(q));
	if (hosts.length === 0) return empty('No host matches.');
	hosts.sort((a, b) => rank[condition(a).kind] - rank[condition(b).kind]); // the order of names stays within one rank
	return memo('ul', { class: 'hostlist', 'data-key': 'host list' }, listVersion(s.model, q), () => [
		hosts.slice(0, 200).map((x) => h('li', { 'data-key': x.peer }, hostLink(x.peer, x.nickname), badge(condition(x).kind, condition(x).text))),
		hosts.length > 200 ? h('li', { class: 'quiet' }, `and ${count(hosts.length - 200, 'more host')}: search for one`) : null,
	]);
}

function hostPanel(s, x) {
	const c = condition(x), r = s.report?.peer === x.peer ? s.report : null;
	return [
		h('p', { class: 'badges' }, badge(c.kind, c.text), x.self ? badge('info', 'the host of this page') : null),
		x.error ? h('p', { class: 'note bad' }, x.error) : null,
		x.notReady ? h('p', { class: 'note bad' }, x.notReady) : null,
		(x.problems ?? []).map(problem),
		h('dl', { class: 'facts' },
			fact('Id', h('code', {}, x.peer)),
			fact('Version', x.version || 'unknown'),
			fact('Underlay', (x.underlay ?? []).join(', ') || 'unknown'),
			x.node?.length ? fact('In the overlay', x.node.join(', ')) : null,
			x.datapath ? fact('WireGuard', x.datapath === 'kernel' ? "the kernel's" : 'userspace') : null,
			fact('Endpoints', `${x.endpoints ?? 0}, ${x.isolated ?? 0} isolated by policies`),
			fact('Dropped by policies', count(x.dropped ?? 0, 'packet')),
			fact('Addresses', `${number(x.active ?? 0)} in use, ${number(x.free ?? 0)} free`)),
		h('h3', {}, 'Tunnels'),
		r?.fault ? h('p', { class: 'note bad' }, r.fault) : null,
		tunnels(s, x, r?.report),
		h('h3', {}, 'Endpoints'),
		endpoints(s, x),
	];
}

function tunnels(s, x, report) {
	const all = report ? (report.router?.connections ?? []) : (x.links ?? []);
	if (all.length === 0) return h('p', { class: 'quiet' }, s.model.hosts.length < 2 ? 'No other host is in the network.' : 'It reports no tunnels.');
	const sorted = [...all].sort((a, b) => stateOf(b.state).rank - stateOf(a.state).rank || b.sentRate + b.receivedRate - a.sentRate - a.receivedRate);
	return [
		h('table', { class: 'small' }, h('thead', {}, h('tr', {}, ['To', 'State', 'Round trip', 'Sent', 'Received'].map((t) => h('th', { scope: 'col' }, t)))),
			h('tbody', {}, sorted.slice(0, 100).map((l) => h('tr', { 'data-key': l.peer }, h('th', { scope: 'row' }, hostLink(l.peer, nameOf(s.model, l.peer))),
				h('td', {}, stateBadge(l.state), l.via?.length ? h('div', { class: 'quiet' }, `through ${l.via.map((v) => nameOf(s.model, v)).join(', ')}`) : null),
				h('td', { class: 'right' }, roundTrip(l.roundTrip)), h('td', { class: 'right' }, rate(l.sentRate)), h('td', { class: 'right' }, rate(l.receivedRate)))))),
		sorted.length > 100 ? h('p', { class: 'quiet' }, `and ${count(sorted.length - 100, 'more tunnel')} in the table`) : null,
		(report?.router?.relays ?? []).length ? [h('h3', {}, 'It forwards for others'), h('ul', { class: 'plain' }, report.router.relays.map((f) => h('li', {}, `${nameOf(s.model, f.from)} → ${nameOf(s.model, f.to)}: ${bytes(f.bytes)}`)))] : null,
	];
}

function endpoints(s, x) {
	const mine = s.endpoints.list.filter((e) => e.peer === x.peer);
	if (mine.length === 0) return h('p', { class: 'quiet' }, 'It has no endpoints.');
	return h('ul', { class: 'plain' }, mine.slice(0, 30).map((e) => h('li', { 'data-key': e.id }, h('button', { type: 'button', class: 'link', 'data-click': 'openEndpoint', 'data-arg': e.id }, e.full), h('span', { class: 'quiet' }, ` ${e.addresses?.[0] ?? ''}`))),
		mine.length > 30 ? h('li', { class: 'quiet' }, `and ${count(mine.length - 30, 'more endpoint')}`) : null);
}

function linkPanel(s, l) {
	const st = stateOf(l.state), a = nameOf(s.model, l.a), b = nameOf(s.model, l.b);
	return [
		h('p', { class: 'badges' }, stateBadge(l.state)),
		h('p', {}, `${st.says[0]?.toUpperCase() ?? ''}${st.says.slice(1)}${st.says ? '.' : ''}`),
		l.info ? h('p', { class: `note ${st.kind === 'bad' ? 'bad' : ''}` }, l.info) : null,
		h('dl', { class: 'facts' },
			fact('Ends', hostLink(l.a, a), ' – ', hostLink(l.b, b)),
			l.via.length ? fact('Relay', l.via.map((v, i) => [i ? ', ' : '', hostLink(String(v).replace(/\(.*$/, ''), nameOf(s.model, v))])) : null,
			fact('Round trip', roundTrip(l.roundTrip)),
			fact('Lost', l.loss === null ? 'not measured' : percent(l.loss)),
			fact(`${a} → ${b}`, rate(l.sent)),
			fact(`${b} → ${a}`, rate(l.received))),
	];
}

