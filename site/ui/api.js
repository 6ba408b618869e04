// Questions to the server of the page. The token comes with the address that weft ui printed. It is kept for this tab
// only, and taken out of the address bar.

const place = 'weft-token';
let token = '';

// start takes the token from the address, or from an earlier load of this tab.
export function start() {
	const m = /[#&]token=([A-Za-z0-9_-]+)/.exec(location.hash);
	if (m) {
		token = m[1];
		sessionStorage.setItem(place, token);
		history.replaceState(null, '', `${location.pathname}#/mesh`);
	} else token = sessionStorage.getItem(place) ?? '';
	return token !== '';
}

// setToken takes the token of a typed address.
export function setToken(text) {
	token = /token=([A-Za-z0-9_-]+)/.exec(text)?.[1] ?? text.trim();
	sessionStorage.setItem(place, token);
}

// Refusal is an error with the agent's or the server's words. Its code is "token" if the token is wrong, "gone" if
// nothing answers, and otherwise the agent's.
export class Refusal extends Error {
	constructor(code, message) {
		super(message);
		this.code = code;
	}
}

// ask sends one question and returns the answer.
export async function ask(what, body = {}) {
	let reply;
	try {
		reply = await fetch(`/api/${what}`, {
			method: 'POST', cache: 'no-store', credentials: 'omit', referrerPolicy: 'no-referrer', redirect: 'error',
			headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' },
			body: JSON.stringify(body), signal: AbortSignal.timeout(30000),
		});
	} catch {
		throw new Refusal('gone', 'weft ui does not answer: it has ended, or the connection to it is cut. Start it again, and open the address that it prints.');
	}
	const data = await reply.json().catch(() => ({ error: { code: 'internal', message: `the server answered HTTP status ${reply.status}` } }));
	if (reply.status === 401) throw new Refusal('token', data.error.message);
	if (data.error) throw new Refusal(data.error.code, data.error.message);
	return data.answer;
}
