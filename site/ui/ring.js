// The geometry of the address ring. Everything here is a function of its arguments.

// range parses an IPv4 CIDR into its first number and its length; null if it is none.
export function range(cidr) {
	const m = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\/(\d{1,2})$/.exec(cidr);
	if (!m || m.slice(1, 5).some((x) => x > 255) || m[5] > 32) return null;
	const start = ((+m[1] * 256 + +m[2]) * 256 + +m[3]) * 256 + +m[4];
	return { start, size: 2 ** (32 - m[5]) };
}

// address prints a number as an IPv4 address.
export const address = (n) => [24, 16, 8, 0].map((s) => Math.floor(n / 2 ** s) % 256).join('.');

// cells cuts the universe into equal cells, and says whose each is: the index of the owner with most addresses in it,
// or -1 if nobody owns any. So thousands of ranges cost no more than the pixels that show them.
export function cells(owners, universe, n) {
	const whole = range(universe);
	if (!whole) return [];
	const size = whole.size / n;
	const best = new Float64Array(n), owner = new Int32Array(n).fill(-1);
	owners.forEach((o, index) => {
		const part = new Map();
		for (const cidr of o.ranges ?? []) {
			const r = range(cidr);
			if (!r) continue;
			const from = r.start - whole.start, to = from + r.size;
			for (let c = Math.max(0, Math.floor(from / size)); c < Math.min(n, Math.ceil(to / size)); c++) {
				part.set(c, (part.get(c) ?? 0) + Math.min(to, (c + 1) * size) - Math.max(from, c * size));
			}
		}
		for (const [c, much] of part) if (much > best[c]) [best[c], owner[c]] = [much, index];
	});
	return [...owner];
}

// runs joins neighbouring cells of one owner, and cuts them at the ends of rows.
export function runs(owner, rows) {
	const perRow = Math.ceil(owner.length / rows);
	const out = [];
	for (let i = 0; i < owner.length; i++) {
		const row = Math.floor(i / perRow), last = out.at(-1);
		if (last && last.row === row && last.owner === owner[i]) last.width++;
		else out.push({ row, x: i - row * perRow, width: 1, owner: owner[i] });
	}
	return out;
}
