// The page: it asks the agent again and again, keeps what it learns in one state, and shows one of the views. A view
// is a function from the state to elements. Its actions change the state; then the page is shown anew.
import { ask, Refusal, setToken, start } from './api.js';
import { fill, h } from './dom.js';
import { ago, count } from './format.js';
import { index } from './filter.js';
import { build, changes, nameOf } from './model.js';
import { badge, icon, iconButton } from './parts.js';
import * as mesh from './mesh.js';
import * as ring from './addresses.js';
import * as endpoints from './endpoints.js';
import * as access from './access.js';
import * as flows from './flows.js';
import * as health from './health.js';

const views = { mesh, ring, endpoints, access, flows, health };
const period = { network: 2000, flows: 1000, access: 10000, host: 4000 };

const state = {
	view: 'mesh', network: null, model: null, fresh: 0, fault: null, needsToken: false, version: '', now: Date.now(),
	endpoints: { version: null, list: [] }, scroll: {}, room: {}, size: { mesh: { width: 900, height: 600 }, ring: { width: 1000 } },
	...mesh.initial(), ...ring.initial(), ...endpoints.initial(), ...access.initial(), ...flows.initial(),
};

const app = { state, ask: question, show, go, announce };
const actions = {
	skip: () => document.getElementById('main').focus(),
	theme: () => theme(current() === 'dark' ? 'light' : 'dark'),
	token: (_, event) => {
		event.preventDefault();
		setToken(new FormData(event.target).get('token'));
		state.needsToken = false;
		poll();
	},
	openHost: (peer) => mesh.openHost(app, peer),
};
for (const v of Object.values(views)) Object.assign(actions, v.actions?.(app));

// question asks the server, and notes whether it answers.
async function question(what, body) {
	try {
		return await ask(what, body);
	} catch (err) {
		if (err instanceof Refusal && err.code === 'token') state.needsToken = true;
		throw err;
	}
}

async function poll() {
	try {
		const network = await question('network');
		const model = build(network);
		if (state.model && state.fault === null) announce(changes(state.model, model));
		if (state.fault) announce(['The agent answers again.']);
		Object.assign(state, { network, model, fresh: Date.now(), fault: null });
		if (network.endpoints !== state.endpoints.version) await loadEndpoints(network.endpoints);
	} catch (err) {
		if (!(err instanceof Refusal)) throw err; // a fault of the page itself belongs into the browser's console
		state.fault = err;
	}
	show();
}

async function loadEndpoints(version) {
	const reply = await question('endpoints');
	state.endpoints = { version, list: index(reply.endpoints ?? [], (p) => nameOf(state.model, p)) };
}

// every repeats a task while the page is visible and the task is wanted. It pauses between the end of one run and the
// next, so that a slow agent is not asked more and more.
function every(ms, wanted, task) {
	const run = async () => {
		if (document.visibilityState === 'visible' && !state.needsToken && wanted()) {
			await task().catch((err) => {
				if (!(err instanceof Refusal)) throw err;
			});
		}
		setTimeout(run, ms);
	};
	run();
}

let waiting = false;
function show() {
	if (waiting) return;
	waiting = true;
	requestAnimationFrame(() => {
		waiting = false;
		render();
	});
}

function render() {
	state.now = Date.now();
	fill(document.getElementById('nav'), [navigation()]);
	fill(document.getElementById('status'), status());
	fill(document.getElementById('banner'), banner());
	const main = document.getElementById('main');
	main.className = `view-${state.view}`;
	document.title = `${views[state.view].title} – Weft`;
	fill(main, state.needsToken ? [tokenForm()] : state.model ? [h('h1', { class: 'unseen', 'data-key': `h1-${state.view}` }, views[state.view].title), h('div', { class: 'view', 'data-key': state.view }, views[state.view].render(state))] : [h('p', { class: 'loading' }, state.fault ? '' : 'Asking the agent …')]);
	measure();
}

function navigation() {
	const troubled = state.model?.totals.unwell ?? 0;
	return h('ul', {}, Object.entries(views).map(([name, v]) => h('li', {}, h('a', { href: `#/${name}`, 'aria-current': name === state.view ? 'page' : null }, icon(name), h('span', {}, v.title),
		name === 'health' && troubled ? h('span', { class: 'bubble' }, troubled, h('span', { class: 'unseen' }, troubled === 1 ? ' host has problems' : ' hosts have problems')) : null))));
}

function status() {
	const dark = current() === 'dark';
	const stale = state.fault || (state.fresh && state.now - state.fresh > 15000);
	return [
		state.model ? h('span', { class: 'glance' }, count(state.model.totals.hosts, 'host'), ' · ', count(state.endpoints.list.length || state.model.totals.endpoints, 'endpoint')) : null,
		state.fresh ? badge(stale ? 'bad' : 'ok', stale ? `as of ${ago(state.fresh, state.now)}` : 'live') : null,
		iconButton(dark ? 'sun' : 'moon', dark ? 'Light colours' : 'Dark colours', 'theme'),
	].filter(Boolean);
}

function banner() {
	if (!state.fault || state.needsToken) return [];
	const gone = state.fault.code === 'gone';
	return [h('div', { class: 'banner bad' }, icon('bad'), h('p', {}, h('strong', {}, gone ? 'No connection: ' : 'The agent does not answer: '), state.fault.message,
		state.fresh ? ` The page shows the network as of ${ago(state.fresh, state.now)}, and asks again.` : ' The page asks again.'))];
}

function tokenForm() {
	return h('form', { class: 'card tokenform', 'data-submit': 'token' },
		h('h1', {}, 'This page needs its token'),
		h('p', {}, 'Open the whole address that weft ui printed: the token follows #token=. Each start of weft ui makes a new token. You can also paste the address here.'),
		h('label', {}, 'Address or token', h('input', { name: 'token', type: 'text', autocomplete: 'off', spellcheck: 'false', required: true })),
		h('button', { type: 'submit', class: 'button primary' }, 'Open'));
}

function announce(sentences) {
	if (sentences.length) document.getElementById('live').textContent = sentences.join(' ');
}

function current() {
	return document.documentElement.dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
}

function theme(name) {
	document.documentElement.dataset.theme = name;
	localStorage.setItem('weft-theme', name);
	show();
}

// go shows another view.
function go(view) {
	if (location.hash !== `#/${view}`) location.hash = `#/${view}`;
	else route();
}

function route() {
	const token = /[#&]token=/.test(location.hash);
	if (token) start();
	const name = location.hash.replace(/^#\//, '').split('?')[0];
	const before = state.view;
	state.view = views[name] ? name : 'mesh';
	if (token) state.needsToken = false;
	if (state.view !== before) {
		window.scrollTo(0, 0);
		views[state.view].enter?.(app);
	}
	show();
}

// measure learns how much room tables and pictures have. If that changed, the page is shown once more.
function measure() {
	let changed = false;
	for (const el of document.querySelectorAll('[data-scroll]')) {
		if (state.room[el.dataset.scroll] !== el.clientHeight) changed = true;
		state.room[el.dataset.scroll] = el.clientHeight;
	}
	for (const el of document.querySelectorAll('[data-size]')) {
		const was = state.size[el.dataset.size];
		if (!el.clientWidth || (was.width === el.clientWidth && was.height === el.clientHeight)) continue;
		state.size[el.dataset.size] = { width: el.clientWidth, height: el.clientHeight };
		changed = true;
	}
	if (changed) show();
}

// Events reach the action that the nearest element with the attribute names.
function deliver(type, attribute) {
	document.addEventListener(type, (event) => {
		const el = event.target.closest?.(`[data-${attribute}]`);
		if (!el || !actions[el.getAttribute(`data-${attribute}`)]) return;
		actions[el.getAttribute(`data-${attribute}`)](el.getAttribute('data-arg'), event, el);
		show();
	}, { passive: false });
}
for (const [type, attribute] of [['click', 'click'], ['input', 'input'], ['change', 'change'], ['submit', 'submit'], ['keydown', 'keys'], ['wheel', 'wheel'], ['pointerdown', 'drag'], ['focusin', 'focus'], ['focusout', 'blur']]) deliver(type, attribute);

document.addEventListener('scroll', (event) => {
	const name = event.target.dataset?.scroll;
	if (name === undefined) return;
	state.scroll[name] = event.target.scrollTop;
	show();
}, true);

// Enter and space press what is no button of its own; arrows move between the rows of a table.
document.addEventListener('keydown', (event) => {
	const el = event.target;
	if ((event.key === 'Enter' || event.key === ' ') && el.matches('[data-click][tabindex]')) {
		event.preventDefault();
		el.dispatchEvent(new MouseEvent('click', { bubbles: true }));
	}
	if ((event.key === 'ArrowDown' || event.key === 'ArrowUp') && el.matches('[data-row]')) {
		event.preventDefault();
		(event.key === 'ArrowDown' ? el.nextElementSibling : el.previousElementSibling)?.focus();
	}
});

window.addEventListener('hashchange', route);
window.addEventListener('resize', show);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', show);
document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && poll());
mesh.pointer(app);

const saved = localStorage.getItem('weft-theme');
if (saved === 'dark' || saved === 'light') document.documentElement.dataset.theme = saved;
state.needsToken = !start();
route();
every(period.network, () => true, poll);
every(period.flows, () => state.view === 'flows', () => flows.poll(app));
every(period.access, () => state.view === 'access', () => access.poll(app));
every(period.host, () => state.view === 'mesh' && state.selected?.host, () => mesh.loadReport(app));
every(1000, () => state.fault !== null, async () => show());
