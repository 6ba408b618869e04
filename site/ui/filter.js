// What the page's search fields select. Everything here is a function of its arguments.
import { natural } from './format.js';

// matches reports whether a text has all words of a query, in any order. A query without words selects everything.
export function matcher(query) {
	const words = String(query).toLowerCase().split(/\s+/).filter(Boolean);
	return (text) => words.every((w) => text.includes(w));
}

export const nameOfEndpoint = (e) => (e.name ? `${e.namespace ? `${e.namespace}/` : ''}${e.name}` : e.id);

// index prepares endpoints for searching: each has its text in lower case.
export function index(endpoints, hostName) {
	return endpoints
		.map((e) => {
			const host = hostName(e.peer);
			const labels = Object.entries(e.labels ?? {}).map(([k, v]) => `${k}=${v}`);
			return { ...e, full: nameOfEndpoint(e), host, text: [e.id, e.namespace, e.name, host, ...(e.addresses ?? []), ...labels].join(' ').toLowerCase() };
		})
		.sort((a, b) => natural(a.namespace ?? '', b.namespace ?? '') || natural(a.full, b.full));
}

// namespaces counts endpoints by namespace, in the order of the list.
export function namespaces(list) {
	const out = new Map();
	for (const e of list) out.set(e.namespace ?? '', (out.get(e.namespace ?? '') ?? 0) + 1);
	return [...out].map(([name, many]) => ({ name, many }));
}

// end is how an end of a flow is called: an endpoint, a host, or an address.
export function end(e, at) {
	if (e.name) return `${e.namespace ? `${e.namespace}/` : ''}${e.name}`;
	if (e.node) return `host ${/\((.*)\)$/.exec(e.peer ?? '')?.[1] ?? e.peer ?? ''}`.trim();
	return host(at);
}

// host is the address of ADDRESS:PORT or [ADDRESS]:PORT, port its port.
export const host = (at) => String(at ?? '').replace(/:\d*$/, '').replace(/^\[(.*)\]$/, '$1');
export const port = (at) => Number(/:(\d+)$/.exec(String(at ?? ''))?.[1] ?? 0);

// merge adds newer reports of flows to those that the page has, and keeps the newest ones. Rates come from two
// reports of one flow.
export function merge(known, flows, keep) {
	for (const f of flows) {
		const id = `${f.peer} ${f.id} ${f.start}`;
		const was = known.get(id);
		const last = Date.parse(f.last);
		const now = { ...f, key: id, at: last, sentRate: 0, receivedRate: 0 };
		now.text = [end(f.from, f.source), end(f.to, f.destination), f.source, f.destination, f.protocol, f.verdict, f.policy, f.why, f.nickname].join(' ').toLowerCase();
		if (was && last > was.at) {
			const s = (last - was.at) / 1000;
			now.sentRate = Math.max(0, f.sentBytes - was.sentBytes) / s;
			now.receivedRate = Math.max(0, f.receivedBytes - was.receivedBytes) / s;
		}
		if (f.ended) now.sentRate = now.receivedRate = 0;
		known.set(id, now);
	}
	const list = [...known.values()].sort((a, b) => b.at - a.at || (a.key < b.key ? -1 : 1));
	for (const f of list.splice(keep)) known.delete(f.key);
	return collapse(list);
}

// collapse makes one row of a connection that the hosts of both its ends report. What one of them denies is denied.
export function collapse(list) {
	const rows = new Map(), out = [];
	for (const f of list) {
		const id = `${f.protocol} ${f.source} ${f.destination}`, start = Date.parse(f.start), row = rows.get(id);
		if (row && row.f.peer !== f.peer && Math.abs(row.start - start) < 10000) {
			const both = { ...(row.f.verdict === 'allowed' ? f : row.f), key: row.f.key, at: row.f.at, seen: [row.f.nickname, f.nickname].sort(natural) };
			both.sentRate = Math.max(row.f.sentRate, f.sentRate);
			both.receivedRate = Math.max(row.f.receivedRate, f.receivedRate);
			out[row.i] = both;
			rows.delete(id); // a third report is another connection
			continue;
		}
		rows.set(id, { f, start, i: out.length });
		out.push(f);
	}
	return out;
}

// question reads "80", "80/tcp", "53/udp" or "icmp" as a port and a protocol; null if it is none of them.
export function question(text) {
	const t = String(text).trim().toLowerCase();
	if (t === '') return { port: 0, protocol: '' };
	if (t === 'icmp') return { port: 0, protocol: 'ICMP' };
	const m = /^(\d{1,5})(?:\/(tcp|udp|sctp))?$/.exec(t);
	if (!m || +m[1] < 1 || +m[1] > 65535) return null;
	return { port: +m[1], protocol: (m[2] ?? 'tcp').toUpperCase() };
}
