// The address ring: which host owns which addresses, as a band.
import { h } from './dom.js';
import { number, percent } from './format.js';
import { address, cells, range, runs } from './ring.js';
import { badge, choice, empty, fact, hostLink, memo, table } from './parts.js';

export const title = 'Addresses';
export const initial = () => ({ owner: null, ringOrder: 'share' });

const height = 52, gap = 8;

// hue gives each owner a colour far from its neighbours'. Colours alone mean nothing: names are written in the band
// and in the table.
const hue = (i) => Math.round((195 + i * 137.508) % 360);

export function render(s) {
	const ring = s.network.ring ?? {}, owners = ring.owners ?? [];
	if (owners.length === 0) return [empty('Nobody owns addresses yet.', ring.status ? `The ring: ${ring.status}.` : '')];
	const chosen = owners.findIndex((o) => o.peer === s.owner);
	return [
		ring.conflict ? h('p', { class: 'note bad' }, ring.conflict) : null,
		h('section', { class: 'card band', 'aria-labelledby': 'band-title' },
			h('header', {}, h('h2', { id: 'band-title' }, 'Who owns the addresses'), h('p', { class: 'quiet' }, ranges(ring))),
			band(s, ring, owners, chosen),
			chosen >= 0 ? detail(s, owners[chosen]) : h('p', { class: 'quiet' }, 'Choose a host to see its ranges. Hatched parts belong to hosts that do not answer.')),
		owners.length > 1 ? h('div', { class: 'toolbar' }, choice('Order', 'ringOrder', [['share', 'Largest share first'], ['name', 'By name']], s.ringOrder)) : null,
		ownerTable(s, ring, owners),
	];
}

const ranges = (ring) => [ring.range, ring.range6].filter(Boolean).join(' and ') + (ring.size ? `, ${number(ring.size)} addresses of each family` : '');

function band(s, ring, owners, chosen) {
	const width = Math.max(300, s.size.ring.width), rows = owners.length > 40 ? 4 : owners.length > 6 ? 2 : 1;
	const version = [width, rows, chosen, ...owners.map((o) => `${o.peer}${o.reachable}${o.slots}${(o.ranges ?? []).join()}`)].join(' ');
	return h('div', { class: 'bandroom', 'data-size': 'ring' }, memo('svg:svg', { 'data-key': 'band', width, height: rows * (height + gap + 14), role: 'img', 'aria-label': 'The address range, from the first address on the left to the last on the right. The table below has the same.' }, version, () => {
		const owner = cells(owners, ring.range, Math.floor(width) * rows), perRow = Math.ceil(owner.length / rows), whole = range(ring.range);
		return [
			h('svg:defs', {}, h('svg:pattern', { id: 'hatch', width: 8, height: 8, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' }, h('svg:rect', { width: 4, height: 8, class: 'hatchline' }))),
			runs(owner, rows).map((r) => segment(r, owners, chosen)),
			whole ? Array.from({ length: rows }, (_, row) => h('svg:text', { x: 0, y: row * (height + gap + 14) + height + 13, class: 'tick' }, address(whole.start + Math.floor((whole.size / rows) * row)))) : null,
			whole ? Array.from({ length: rows }, (_, row) => h('svg:text', { x: perRow, y: row * (height + gap + 14) + height + 13, class: 'tick end' }, address(whole.start + Math.floor((whole.size / rows) * (row + 1)) - 1))) : null,
		];
	}));
}

function segment(r, owners, chosen) {
	const o = owners[r.owner], y = r.row * (height + gap + 14);
	if (!o) return h('svg:rect', { x: r.x, y, width: r.width, height, class: 'segment nobody', 'data-tip': 'Nobody owns these addresses.' });
	const name = o.nickname || o.peer;
	return h('svg:g', { class: `segment${chosen === r.owner ? ' on' : chosen >= 0 ? ' off' : ''}`, 'data-click': 'owner', 'data-arg': o.peer, 'data-tip': `${name}: ${percent(o.percent / 100)}${o.reachable ? '' : ', unreachable'}` },
		h('svg:rect', { x: r.x, y, width: Math.max(1, r.width - (r.width > 6 ? 1 : 0)), height, rx: r.width > 12 ? 4 : 0, style: { '--hue': hue(r.owner) } }),
		o.reachable ? null : h('svg:rect', { x: r.x, y, width: r.width, height, class: 'hatched' }),
		r.width > name.length * 8 + 16 ? h('svg:text', { x: r.x + r.width / 2, y: y + height / 2 + 5 }, name) : null);
}

function detail(s, o) {
	const list = o.ranges ?? [];
	return h('dl', { class: 'facts inline', 'data-key': `owner ${o.peer}` },
		fact('Host', hostLink(o.peer, o.nickname || o.peer)),
		fact('Owns', `${number(o.slots)} addresses, ${percent(o.percent / 100)}`),
		fact('Ranges', h('span', { class: 'mono' }, list.slice(0, 40).join('  '), list.length > 40 ? ` and ${number(list.length - 40)} more` : '')));
}

function ownerTable(s, ring, owners) {
	const hosts = s.model.byId;
	const rows = owners.map((o, i) => ({ ...o, i, host: hosts.get(o.peer) }));
	if (s.ringOrder === 'share') rows.sort((a, b) => b.slots - a.slots || a.i - b.i);
	else rows.sort((a, b) => (a.nickname ?? a.peer).localeCompare(b.nickname ?? b.peer, 'en', { numeric: true }));
	const used = (o) => o.usage?.active ?? o.host?.active, free = (o) => o.usage?.free ?? o.host?.free;
	return table({
		name: 'owners', label: 'Owners of the addresses', compact: true, state: s, rows, keyOf: (o) => o.peer, click: 'owner', selected: s.owner,
		columns: [['Host', 'grow'], ['Share', 'grow'], ['Owns', 'right'], ['In use', 'right'], ['Free', 'right'], ['Ranges', 'right'], ['State', 'grow']],
		cells: (o) => [
			[h('span', { class: `swatch${o.reachable ? '' : ' hatched'}`, style: { '--hue': hue(o.i) } }), h('span', {}, o.nickname || o.peer)],
			h('span', { class: 'share' }, h('span', { class: 'bar', 'aria-hidden': 'true' }, h('span', { style: { width: `${Math.min(100, o.percent)}%`, '--hue': hue(o.i) } })), h('span', {}, percent(o.percent / 100))),
			number(o.slots), used(o) === undefined ? '–' : number(used(o)), free(o) === undefined ? '–' : number(free(o)), number((o.ranges ?? []).length),
			badge(o.reachable ? 'ok' : 'bad', o.reachable ? (o.self ? 'this host' : 'reachable') : 'unreachable'),
		],
		note: empty('Nobody owns addresses yet.'),
	});
}

export function actions(app) {
	return {
		owner: (peer) => { app.state.owner = app.state.owner === peer ? null : peer; },
		ringOrder: (order) => { app.state.ringOrder = order; },
	};
}
