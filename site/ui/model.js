// What the page knows about the network, derived from the agent's answer. Everything here is a function of its
// arguments.
import { count, natural, percent, rate, roundTrip } from './format.js';

// The states of a tunnel, the worst last: how it is called, and its kind (ok, warn, bad, idle).
export const states = {
	direct: { rank: 0, kind: 'ok', text: 'direct', says: 'packets travel both ways' },
	relayed: { rank: 1, kind: 'warn', text: 'relayed', says: 'another host forwards the sealed packets' },
	pending: { rank: 2, kind: 'idle', text: 'not measured yet', says: 'no answer to measure yet' },
	'one-way': { rank: 3, kind: 'bad', text: 'one way', says: 'packets travel in one direction only' },
	blocked: { rank: 4, kind: 'bad', text: 'blocked', says: "the tunnel's UDP port does not answer" },
	silent: { rank: 5, kind: 'bad', text: 'silent', says: 'nothing comes from the peer' },
	failed: { rank: 6, kind: 'bad', text: 'failed', says: 'no tunnel is possible' },
};
export const stateOf = (name) => states[name] ?? { rank: 3, kind: 'bad', text: String(name), says: '' };

// build sorts hosts, and makes one link of what the hosts at its two ends say.
export function build(network) {
	const hosts = [...(network.hosts ?? [])].sort((a, b) => natural(a.nickname, b.nickname) || natural(a.peer, b.peer));
	const byId = new Map(hosts.map((h) => [h.peer, h]));
	const links = new Map();
	for (const h of hosts) {
		if (h.error) continue; // what an absent host said earlier is old
		for (const l of h.links ?? []) if (byId.has(l.peer) && l.peer !== h.peer) join(links, h.peer, l);
	}
	const list = [...links.values()];
	return { hosts, byId, links: list, byLink: links, totals: totals(hosts, list) };
}

export const linkId = (a, b) => (a < b ? `${a} ${b}` : `${b} ${a}`);

// join adds what one host says about a tunnel. From a to b is sent, the other direction is received.
export function join(links, from, l) {
	const id = linkId(from, l.peer);
	const forward = from < l.peer;
	const sent = forward ? l.sentRate : l.receivedRate, received = forward ? l.receivedRate : l.sentRate;
	const via = forward ? l.via ?? [] : [...(l.via ?? [])].reverse();
	const had = links.get(id);
	if (!had) {
		links.set(id, {
			id, a: forward ? from : l.peer, b: forward ? l.peer : from, state: l.state, info: l.info ?? '', via,
			roundTrip: l.roundTrip ?? null, loss: l.loss ?? null, sent, received,
		});
		return;
	}
	if (stateOf(l.state).rank > stateOf(had.state).rank) Object.assign(had, { state: l.state, via, info: l.info || had.info });
	// Each host measures for itself: take the shorter time, since both waited for the same path.
	had.roundTrip = least(had.roundTrip, l.roundTrip);
	had.loss = most(had.loss, l.loss);
	had.sent = Math.max(had.sent, sent);
	had.received = Math.max(had.received, received);
}

const least = (a, b) => (b === null || b === undefined ? a : a === null ? b : Math.min(a, b));
const most = (a, b) => (b === null || b === undefined ? a : a === null ? b : Math.max(a, b));

function totals(hosts, links) {
	const t = { hosts: hosts.length, answering: 0, endpoints: 0, problems: 0, unwell: 0, direct: 0, abnormal: {}, tunnels: 0, dropped: 0 };
	const here = hosts.filter((h) => !h.error);
	for (const h of hosts) {
		if (!h.error) t.answering++;
		t.endpoints += h.endpoints ?? 0;
		t.dropped += h.dropped ?? 0;
		t.problems += (h.problems ?? []).length;
		if (condition(h).kind !== 'ok' && condition(h).kind !== 'idle') t.unwell++;
	}
	for (const l of links) if (l.state !== 'direct') t.abnormal[l.state] = (t.abnormal[l.state] ?? 0) + 1;
	// Each direct tunnel is counted by both its ends if both answer.
	const listed = links.filter((l) => l.state === 'direct').length;
	t.direct = Math.max(listed, Math.round(here.reduce((n, h) => n + (h.direct ?? 0), 0) / 2));
	t.tunnels = t.direct + Object.values(t.abnormal).reduce((a, b) => a + b, 0);
	return t;
}

// condition says in a word how a host is.
export function condition(h) {
	if (h.state === 'left' || h.state === 'removed' || h.state === 'stopped') return { kind: 'idle', text: h.state };
	if (h.state === 'unreachable') return { kind: 'bad', text: 'unreachable' };
	if (h.error) return { kind: 'bad', text: 'does not answer' };
	if (!h.ready) return { kind: 'bad', text: 'not ready' };
	if ((h.problems ?? []).length) return { kind: 'warn', text: count(h.problems.length, 'problem') };
	return { kind: 'ok', text: 'ready' };
}

// nameOf finds a host by its id, nickname or "id(nickname)", and returns what people call it.
export function nameOf(model, ref) {
	const id = String(ref).replace(/\(.*$/, '');
	const h = model.byId.get(id);
	return h ? h.nickname || h.peer : (/\((.*)\)$/.exec(ref)?.[1] ?? String(ref));
}

// sentence describes a link in words.
export function sentence(model, l) {
	const parts = [`${nameOf(model, l.a)} – ${nameOf(model, l.b)}: ${stateOf(l.state).text}`];
	if (l.via.length) parts[0] += ` through ${l.via.map((v) => nameOf(model, v)).join(', ')}`;
	if (l.info && l.state !== 'direct' && l.state !== 'relayed') parts.push(l.info);
	if (l.roundTrip !== null) parts.push(`round trip ${roundTrip(l.roundTrip)}`);
	if (l.loss) parts.push(`${percent(l.loss)} lost`);
	parts.push(rate(l.sent + l.received));
	return parts.join(', ');
}

// shown chooses the links that a picture of many hosts can carry: all with a fault, those of the selected host, and
// the busiest others.
export function shown(links, selected, limit) {
	if (links.length <= limit) return links;
	const first = [], rest = [];
	for (const l of links) (l.state !== 'direct' || l.a === selected || l.b === selected ? first : rest).push(l);
	rest.sort((x, y) => y.sent + y.received - x.sent - x.received || (x.id < y.id ? -1 : 1));
	first.sort((x, y) => stateOf(y.state).rank - stateOf(x.state).rank || (x.id < y.id ? -1 : 1));
	const kept = first.slice(0, 3 * limit);
	return kept.concat(rest.slice(0, Math.max(0, limit - kept.length)));
}

// changes says what differs between two pictures, for people who do not see them: at most six sentences.
export function changes(before, after) {
	const out = [];
	for (const h of after.hosts) {
		const was = before.byId.get(h.peer);
		if (!was) out.push(`Host ${h.nickname} is new.`);
		else if (condition(was).text !== condition(h).text) out.push(`Host ${h.nickname}: ${condition(h).text}.`);
	}
	for (const h of before.hosts) if (!after.byId.has(h.peer)) out.push(`Host ${h.nickname} is gone.`);
	for (const l of after.links) {
		const was = before.byLink.get(l.id);
		if ((was ? was.state : 'direct') !== l.state) out.push(`Tunnel ${sentence(after, l)}.`);
	}
	for (const l of before.links) {
		if (l.state !== 'direct' && !after.byLink.has(l.id) && after.byId.has(l.a) && after.byId.has(l.b)) {
			out.push(`Tunnel ${nameOf(after, l.a)} – ${nameOf(after, l.b)}: direct again.`);
		}
	}
	return out.length > 6 ? [...out.slice(0, 6), `And ${count(out.length - 6, 'more change')}.`] : out;
}
