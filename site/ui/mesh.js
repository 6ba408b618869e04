// The mesh: hosts and tunnels as a graph, or as a table, with a panel about what is selected.
import { h } from './dom.js';
import { count, number, percent, rate, roundTrip } from './format.js';
import { curve, label, place, radius, strokeWidth, through } from './layout.js';
import { condition, nameOf, sentence, shown, stateOf } from './model.js';
import { badge, choice, empty, iconButton, memo, searchField, table, versions } from './parts.js';
import { allLinks, panel } from './panel.js';

export const title = 'Mesh';
export const initial = () => ({ meshAs: 'graph', meshQuery: '', selected: null, report: null, zoom: { k: 1, x: 0, y: 0 }, cursor: '' });

const most = 400; // direct links in one picture
const legend = [['direct', 'direct'], ['relayed', 'relayed'], ['pending', 'not measured'], ['bad', 'one way, blocked, silent or failed']];

export function render(s) {
	const m = s.model;
	return [
		h('div', { class: 'toolbar' },
			searchField('meshSearch', 'Find a host', s.meshQuery),
			choice('Show the mesh as', 'meshAs', [['graph', 'Graph'], ['table', 'Table']], s.meshAs),
			h('p', { class: 'summary' }, summary(m.totals))),
		h('div', { class: `split${s.selected ? ' open' : ''}` },
			s.meshAs === 'graph' ? graph(s) : linkTable(s),
			panel(s)),
	];
}

function summary(t) {
	const parts = [`${count(t.tunnels, 'tunnel')}: ${number(t.direct)} direct`];
	for (const [name, many] of Object.entries(t.abnormal)) parts.push(`${many} ${stateOf(name).text}`);
	return parts.join(', ');
}

function linkTable(s) {
	const m = s.model, rows = rowsOf(s);
	return table({
		name: 'links', label: 'Tunnels', state: s, rows, keyOf: (l) => l.id, click: 'selectLink', selected: s.selected?.link,
		columns: [['From', 'grow'], ['To', 'grow'], ['State', 'grow'], ['Through', 'grow'], ['Round trip', 'right'], ['Lost', 'right'], ['Sent', 'right'], ['Received', 'right']],
		cells: (l) => [nameOf(m, l.a), nameOf(m, l.b), stateBadge(l.state), l.via.map((v) => nameOf(m, v)).join(', '), roundTrip(l.roundTrip), l.loss === null ? '' : percent(l.loss), rate(l.sent), rate(l.received)],
		note: empty(m.hosts.length < 2 ? 'This host is alone.' : 'No tunnel matches.'),
	});
}

export const stateBadge = (name) => badge(stateOf(name).kind, stateOf(name).text, name === 'relayed' ? 'relay' : undefined);

const found = (s, host) => host && `${host.nickname} ${host.peer} ${(host.underlay ?? []).join(' ')} ${(host.node ?? []).join(' ')}`.toLowerCase().includes(s.meshQuery.toLowerCase().trim());

const linksVersion = versions(), hostsVersion = versions();

function graph(s) {
	const { width, height } = s.size.mesh, m = s.model, n = m.hosts.length;
	const links = drawn(s);
	return h('section', { class: 'graph card', 'aria-label': 'Graph of hosts and tunnels', 'data-key': 'graph' },
		h('div', { class: 'canvas', 'data-size': 'mesh' },
			h('svg:svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'group', 'aria-label': 'Hosts: the arrow keys move, Enter opens one. The table has all tunnels.', 'data-keys': 'meshKeys', 'data-wheel': 'meshWheel', 'data-drag': 'meshDrag', class: `${n > 28 ? 'many' : 'few'}${s.selected ? ' picked' : ''}` },
				h('svg:g', { id: 'zoomed', transform: transform(s.zoom) },
					memo('svg:g', { class: 'links', 'data-key': 'mesh links', 'aria-hidden': 'true' }, linksVersion(m, links, s.size.mesh, s.selected), () => drawLinks(s, links)),
					memo('svg:g', { class: 'hosts', 'data-key': 'mesh hosts' }, hostsVersion(m, s.size.mesh, s.selected, s.meshQuery, s.cursor, large(s)), () => drawHosts(s)))),
			h('div', { class: 'zoombuttons' }, iconButton('plus', 'Larger', 'meshZoom', '1.3'), iconButton('minus', 'Smaller', 'meshZoom', '0.77'), iconButton('fit', 'Whole mesh', 'meshFit'))),
		h('div', { class: 'legend' }, h('ul', { 'aria-label': 'Lines' }, legend.map(([kind, text]) => h('li', {}, h('svg:svg', { width: 34, height: 12, 'aria-hidden': 'true' }, h('svg:path', { d: 'M1 6H33', class: `link ${kind}`, 'stroke-width': 2.5 }), kind === 'bad' ? h('svg:path', { d: 'M13.5 2.5l7 7m0-7l-7 7', class: 'cross' }) : null), text))),
			h('span', { class: 'quiet' }, m.totals.tunnels > links.length ? `${number(links.length)} of ${count(m.totals.tunnels, 'tunnel')}: faults, the busiest, and those of the selected host` : 'wider: more traffic')));
}

function drawLinks(s, links) {
	const points = placed(s), middle = middleOf(s), n = s.model.hosts.length, few = links.length <= 15;
	return [
		h('svg:g', {}, links.map((l) => drawLink(s, l, points, middle, links.length, n))),
		h('svg:g', {}, links.filter((l) => few || l.id === s.selected?.link).map((l) => drawLabel(s, l, points, middle))),
	];
}

function drawHosts(s) {
	const { hosts, byId } = s.model, points = placed(s), middle = middleOf(s);
	const focused = s.cursor && byId.has(s.cursor) ? s.cursor : hosts[0]?.peer;
	return hosts.map((host) => drawHost(s, host, points.get(host.peer), hosts.length, host.peer === focused, middle));
}

// placed has the point of each host in the picture.
function placed(s) {
	const { hosts } = s.model, { width, height } = s.size.mesh;
	return new Map(place(hosts.length, width, height - 30).map((p, i) => [hosts[i].peer, p]));
}

const middleOf = (s) => ({ x: s.size.mesh.width / 2, y: s.size.mesh.height / 2 });

// large says whether hosts lie so far apart that each has room for its name.
const large = (s) => s.zoom.k >= 2;

let last = {};

// drawn has the links of the picture; faults come last, above the others. The last result is kept.
function drawn(s) {
	const all = allLinks(s), selected = s.selected?.host;
	if (last.all !== all || last.selected !== selected) {
		const links = [...shown(all, selected, most)].sort((x, y) => stateOf(x.state).rank - stateOf(y.state).rank);
		last = { all, selected, links };
	}
	return last.links;
}

let listed = {};

// rowsOf has the links of the table; faults come first. The last result is kept.
function rowsOf(s) {
	const all = allLinks(s), query = s.meshQuery;
	if (listed.all !== all || listed.query !== query) {
		const rows = all.filter((l) => !query || [l.a, l.b].some((p) => found(s, s.model.byId.get(p))));
		rows.sort((x, y) => stateOf(y.state).rank - stateOf(x.state).rank || y.sent + y.received - x.sent - x.received);
		listed = { all, query, rows };
	}
	return listed.rows;
}

const transform = (z) => `translate(${z.x} ${z.y}) scale(${z.k})`;

// route has the points that a link passes: its ends, and the relays between them.
function route(l, points) {
	const via = l.via.map((v) => points.get(String(v).replace(/\(.*$/, ''))).filter(Boolean);
	return [points.get(l.a), ...via, points.get(l.b)];
}

function drawLink(s, l, points, middle, many, n) {
	const stops = route(l, points), kind = stateOf(l.state).kind, near = s.selected && (s.selected.link === l.id || s.selected.host === l.a || s.selected.host === l.b);
	const straight = curve(stops[0], stops.at(-1), middle), d = stops.length > 2 ? through(stops) : straight;
	const width = strokeWidth(l.sent + l.received) / (n > 28 ? 2.4 : 1), at = label(stops[0], stops.at(-1), middle);
	return h('svg:g', { class: `linkgroup${near ? ' near' : ''}${s.selected?.link === l.id ? ' chosen' : ''}`, 'data-key': l.id, 'data-click': 'selectLink', 'data-arg': l.id, 'data-tip': sentence(s.model, l), 'data-state': l.state },
		stops.length > 2 && many <= 40 ? h('svg:path', { d: straight, class: 'ghost' }) : null,
		h('svg:path', { d, class: `link ${kind === 'bad' ? 'bad' : l.state}`, 'stroke-width': width }),
		many <= 40 && l.sent + l.received > 2000 && l.state === 'direct' ? h('svg:path', { d, class: `stream${l.received > l.sent ? ' back' : ''}` }) : null,
		many <= 800 ? h('svg:path', { d, class: 'hit' }) : null,
		kind === 'bad' ? h('svg:path', { d: `M${at.x - 6} ${at.y - 6}l12 12m0-12l-12 12`, class: 'cross' }) : null);
}

function drawLabel(s, l, points, middle) {
	const at = label(points.get(l.a), points.get(l.b), middle), kind = stateOf(l.state).kind;
	const lines = l.state === 'direct' ? [] : [stateOf(l.state).text + (l.via.length ? ` through ${l.via.map((v) => nameOf(s.model, v)).join(', ')}` : '')];
	if (kind !== 'bad') lines.push(`${roundTrip(l.roundTrip)} · ${rate(l.sent + l.received)}`);
	const width = Math.max(...lines.map((t) => t.length)) * 6.5 + 18, height = lines.length * 16 + 8;
	const y = kind === 'bad' ? at.y + 12 + height / 2 : at.y;
	return h('svg:g', { class: `linklabel ${kind}`, 'data-key': `label ${l.id}`, transform: `translate(${at.x} ${y})` },
		h('svg:rect', { x: -width / 2, y: -height / 2, width, height, rx: 6 }),
		lines.map((t, i) => h('svg:text', { y: (i - (lines.length - 1) / 2) * 16 + 4, class: i === 0 && lines.length > 1 ? 'strong' : '' }, t)));
}

function drawHost(s, host, p, n, focused, middle) {
	const above = p.y < middle.y - 40;
	const c = condition(host), r = radius(n), on = s.selected?.host === host.peer, hit = s.meshQuery && found(s, host);
	const named = n <= 60 || large(s) || on || hit || s.cursor === host.peer || (c.kind === 'bad' && n <= 200);
	const text = `${host.nickname}${host.self ? ', the host of this page' : ''}: ${c.text}, ${count(host.endpoints ?? 0, 'endpoint')}, ${count(host.direct ?? 0, 'direct tunnel')}`;
	return h('svg:g', {
		class: `host ${c.kind}${on ? ' on' : ''}${hit ? ' hit' : ''}${s.meshQuery && !hit ? ' miss' : ''}${host.self ? ' self' : ''}`, 'data-key': host.peer, role: 'button', tabindex: focused ? '0' : '-1',
		'aria-label': text, 'aria-pressed': String(on), 'data-click': 'selectHost', 'data-arg': host.peer, 'data-tip': text, 'data-focus': 'meshFocus', transform: `translate(${p.x} ${p.y})`,
	},
	h('svg:circle', { r: r + 5, class: 'halo' }),
	h('svg:circle', { r, class: 'disc' }),
	n <= 28 ? h('svg:text', { class: 'inside', y: r > 20 ? 5 : 4 }, String(host.endpoints ?? 0)) : null,
	c.kind === 'ok' || (c.kind === 'idle' && n > 80) ? null : mark(c.kind, r),
	named ? h('svg:text', { class: 'name', y: above ? -r - (n <= 8 ? 28 : 11) : r + (n > 28 ? 16 : 22) }, host.nickname) : null,
	named && n <= 8 ? h('svg:text', { class: 'sub', y: above ? -r - 12 : r + 38 }, host.self ? `this host · ${c.text}` : c.text) : null);
}

function mark(kind, r) {
	const x = r * 0.75, size = Math.max(0.5, Math.min(1, r / 20));
	return h('svg:g', { class: 'mark', transform: `translate(${x} ${-x}) scale(${size})` }, h('svg:circle', { r: 10 }),
		h('svg:path', { d: kind === 'warn' ? 'M0 -5v6M0 4v.5' : kind === 'bad' ? 'M-4 -4l8 8m0-8l-8 8' : 'M-4 0h8' }));
}

export function openHost(app, peer) {
	select(app, { host: peer });
	app.go('mesh');
}

function select(app, what) {
	app.state.selected = what;
	app.state.report = null;
	if (what?.host) {
		app.state.cursor = what.host;
		loadReport(app).catch(() => {}); // the panel shows the error
	}
}

// loadReport asks for the report of the selected host.
export async function loadReport(app) {
	const peer = app.state.selected?.host;
	if (!peer) return;
	try {
		const report = await app.ask('host', { peer });
		if (app.state.selected?.host === peer) app.state.report = { peer, report };
	} catch (err) {
		if (app.state.selected?.host === peer) app.state.report = { peer, fault: err.message };
		throw err;
	} finally {
		app.show();
	}
}

export function actions(app) {
	const s = app.state;
	return {
		meshAs: (as) => { s.meshAs = as; },
		meshSearch: (_, event) => { s.meshQuery = event.target.value; },
		selectHost: (peer) => select(app, s.selected?.host === peer ? null : { host: peer }),
		selectLink: (id) => select(app, s.selected?.link === id ? null : { link: id }),
		closePanel: () => {
			const peer = s.selected?.host;
			select(app, null);
			setTimeout(() => document.querySelector(`.host[data-key="${CSS.escape(peer ?? '')}"]`)?.focus());
		},
		meshFocus: (peer) => { s.cursor = peer; },
		meshFit: () => { s.zoom = { k: 1, x: 0, y: 0 }; },
		meshZoom: (factor) => zoom(s, Number(factor), s.size.mesh.width / 2, s.size.mesh.height / 2),
		meshWheel: (_, event, el) => {
			event.preventDefault();
			const box = el.getBoundingClientRect();
			zoom(s, Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - box.left, event.clientY - box.top);
		},
		meshDrag: (_, event) => { drag = event.target.closest('[data-click]') ? null : { x: event.clientX - s.zoom.x, y: event.clientY - s.zoom.y }; },
		meshKeys: (_, event) => keys(app, event),
	};
}

let drag = null;

function zoom(s, factor, x, y) {
	const k = Math.min(8, Math.max(0.5, s.zoom.k * factor));
	s.zoom = { k, x: x - ((x - s.zoom.x) * k) / s.zoom.k, y: y - ((y - s.zoom.y) * k) / s.zoom.k };
}

function keys(app, event) {
	const s = app.state, hosts = s.model.hosts;
	const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
	let i = hosts.findIndex((x) => x.peer === s.cursor);
	if (step) i = (Math.max(0, i) + step + hosts.length) % hosts.length;
	else if (event.key === 'Home') i = 0;
	else if (event.key === 'End') i = hosts.length - 1;
	else if (event.key === 'Escape') return select(app, null);
	else if (event.key === '+' || event.key === '-') return zoom(s, event.key === '+' ? 1.3 : 0.77, s.size.mesh.width / 2, s.size.mesh.height / 2);
	else return undefined;
	event.preventDefault();
	s.cursor = hosts[i].peer;
	document.querySelector(`.host[data-key="${CSS.escape(s.cursor)}"]`)?.focus();
	return undefined;
}

// pointer moves the picture, and shows the words of what lies under the pointer. It changes the page directly: a
// picture of many hosts is not made anew for each movement.
export function pointer(app) {
	const tip = document.getElementById('tip');
	document.addEventListener('pointermove', (event) => {
		if (drag && event.buttons) {
			Object.assign(app.state.zoom, { x: event.clientX - drag.x, y: event.clientY - drag.y });
			document.getElementById('zoomed')?.setAttribute('transform', transform(app.state.zoom));
		}
		const el = event.target.closest?.('[data-tip]');
		tip.hidden = !el || Boolean(drag && event.buttons);
		if (tip.hidden) return;
		tip.textContent = el.getAttribute('data-tip');
		tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
		tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
	}, { passive: true });
	document.addEventListener('pointerup', () => { drag = null; });
}

