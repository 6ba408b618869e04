// The answer of weft policy explain: a verdict, the way of the connection, and the agent's own words.
import { h } from './dom.js';
import { badge, icon } from './parts.js';

export function answer(s) {
	const a = s.answer;
	if (!a) return null;
	if (a.fault) return h('p', { class: 'note bad' }, a.fault);
	const [headline, ...rest] = a.text.trimEnd().split('\n');
	const e = a.explanation;
	return h('article', { class: `answer ${kindOf(e)}`, 'aria-label': 'Answer' },
		h('h3', {}, badge(kindOf(e), verdict(e)), h('span', {}, headline)),
		way(e),
		h('div', { class: 'words' }, blocks(rest).map(([title, lines]) => h('section', {}, h('h4', {}, title), h('pre', {}, lines.join('\n'))))));
}

function kindOf(e) {
	const all = e.verdicts ?? [];
	if (all.length === 0 || all.every((v) => !v.allowed)) return e.open && e.open !== 'none' && all.length ? 'warn' : 'bad';
	return all.every((v) => v.allowed) && (!e.open || e.open === 'all') ? 'ok' : 'warn';
}

const verdict = (e) => ({ ok: 'Allowed', bad: 'Denied', warn: 'Partly allowed' })[kindOf(e)];

// blocks splits the text at empty lines: each block has a title, and its lines.
export function blocks(lines) {
	const out = [];
	let fresh = true;
	for (const line of lines) {
		if (line.trim() === '') fresh = true;
		else if (fresh) {
			out.push([line.trim(), []]);
			fresh = false;
		} else out.at(-1)[1].push(line.replace(/^ {2}/, ''));
	}
	return out;
}

// way draws where the connection passes and where it ends: source, egress, ingress, destination.
function way(e) {
	const all = e.verdicts ?? [];
	if (all.length === 0) return null;
	const step = (name, get) => {
		const decided = all.map(get), yes = decided.filter((d) => d?.allowed).length;
		const kind = yes === decided.length ? 'ok' : yes === 0 ? 'bad' : 'warn';
		return h('li', { class: `step ${kind}` }, icon(kind, 14), h('span', {}, `${name} ${{ ok: 'allowed', bad: 'denied', warn: 'partly allowed' }[kind]}`));
	};
	return h('ol', { class: 'way', 'aria-label': 'Way of the connection' },
		h('li', { class: 'endpoint' }, e.source?.endpoint || e.source?.asked),
		step('egress', (v) => v.egress), step('ingress', (v) => v.ingress),
		h('li', { class: 'endpoint' }, e.destination?.endpoint || e.destination?.asked));
}
