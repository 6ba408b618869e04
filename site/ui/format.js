// Numbers and times as people read them. Everything here is a function of its arguments.

const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];

export function bytes(n) {
	let u = 0;
	while (n >= 999.5 && u < units.length - 1) {
		n /= 1000;
		u++;
	}
	return `${n >= 99.95 || u === 0 ? Math.round(n) : n.toFixed(1)} ${units[u]}`;
}

export const rate = (n) => (n < 0.5 ? 'idle' : `${bytes(n)}/s`);

// roundTrip formats seconds; not measured is null or undefined.
export function roundTrip(s) {
	if (s === null || s === undefined) return 'not measured';
	const ms = s * 1000;
	if (ms >= 1000) return `${s.toFixed(1)} s`;
	return `${ms >= 100 ? Math.round(ms) : ms >= 10 ? ms.toFixed(1) : ms.toFixed(2)} ms`;
}

export const percent = (part) => (part > 0 && part < 0.001 ? '<0.1 %' : `${(part * 100).toFixed(part < 0.0995 ? 1 : 0)} %`);

export const number = (n) => String(Math.round(n)).replace(/\B(?=(\d{3})+$)/g, ',');

// count is a number with its noun: "1 host", "2 hosts", "no hosts".
export const count = (n, noun, nouns = `${noun}s`) => (n === 1 ? `1 ${noun}` : `${n === 0 ? 'no' : number(n)} ${nouns}`);

// ago says how long a time (ms) lies before now (ms).
export function ago(then, now) {
	const s = Math.max(0, (now - then) / 1000);
	if (s < 2) return 'now';
	if (s < 90) return `${Math.round(s)} s ago`;
	if (s < 5400) return `${Math.round(s / 60)} min ago`;
	if (s < 129600) return `${Math.round(s / 3600)} h ago`;
	return `${Math.round(s / 86400)} days ago`;
}

export const clock = (date) => [date.getHours(), date.getMinutes(), date.getSeconds()].map((n) => String(n).padStart(2, '0')).join(':');

// labels prints labels as kubectl does.
export const labels = (map) => Object.entries(map ?? {}).sort(([a], [b]) => (a < b ? -1 : 1)).map(([k, v]) => `${k}=${v}`);

// natural compares names as people sort them: h2 before h10.
const collator = new Intl.Collator('en', { numeric: true });
export const natural = (a, b) => collator.compare(a, b);
