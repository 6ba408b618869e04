// Where hosts and links are drawn. Everything here is a function of its arguments: the same hosts are always at the
// same places, so that nothing jumps when the page asks again.

// place puts n hosts into a picture: one ellipse for up to 28 hosts, nested ellipses for more.
export function place(n, width, height) {
	const cx = width / 2, cy = height / 2;
	const rx = Math.max(60, width / 2 - (n > 28 ? 40 : 90)), ry = Math.max(60, height / 2 - (n > 28 ? 34 : 84));
	if (n === 0) return [];
	if (n === 1) return [{ x: cx, y: cy }];
	const at = (f, shrink, turn) => ({ x: cx + rx * shrink * Math.sin(turn + f * 2 * Math.PI), y: cy - ry * shrink * Math.cos(turn + f * 2 * Math.PI) });
	if (n === 2) return [{ x: cx - Math.min(rx, 260), y: cy }, { x: cx + Math.min(rx, 260), y: cy }];
	if (n <= 28) {
		const squeeze = n < 8 ? Math.min(1, (ry * 1.5) / rx) : 1; // few hosts: no flat picture
		return Array.from({ length: n }, (_, i) => {
			const p = at(i / n, 1, 0);
			return { x: cx + (p.x - cx) * squeeze, y: p.y };
		});
	}
	const rings = capacity(n, rx, ry);
	const out = [];
	rings.forEach((many, r) => {
		for (let i = 0; i < many; i++) out.push(at(i / many, 1 - r * 0.16, r * 0.05));
	});
	return out;
}

// capacity shares n hosts out to nested ellipses, in proportion to their length.
export function capacity(n, rx, ry) {
	const rings = Math.min(5, Math.max(2, Math.ceil(n / 70)));
	const lengths = Array.from({ length: rings }, (_, r) => (rx + ry) * (1 - r * 0.16));
	const sum = lengths.reduce((a, b) => a + b, 0);
	const shares = lengths.map((l) => Math.floor((n * l) / sum));
	for (let i = 0, left = n - shares.reduce((a, b) => a + b, 0); left > 0; i = (i + 1) % rings, left--) shares[i]++;
	return shares;
}

// radius is the size of a host's circle.
export const radius = (n) => (n <= 8 ? 26 : n <= 16 ? 20 : n <= 28 ? 15 : n <= 80 ? 9 : 6);

// curve is the path of a link, bent a little towards the middle of the picture.
export function curve(p, q, middle) {
	const c = control(p, q, middle);
	return `M${r1(p.x)} ${r1(p.y)}Q${r1(c.x)} ${r1(c.y)} ${r1(q.x)} ${r1(q.y)}`;
}

function control(p, q, middle) {
	const mx = (p.x + q.x) / 2, my = (p.y + q.y) / 2;
	return { x: mx + (middle.x - mx) * 0.12, y: my + (middle.y - my) * 0.12 };
}

// through is the path of a relayed link from end to end by way of its relays. Each part bends to the side of the
// direct line between the ends, so that the relay's own links stay visible.
export function through(points) {
	const first = points[0], last = points.at(-1);
	const middle = { x: (first.x + last.x) / 2, y: (first.y + last.y) / 2 };
	let d = `M${r1(first.x)} ${r1(first.y)}`;
	for (let i = 1; i < points.length; i++) {
		const p = points[i - 1], q = points[i];
		const dx = q.x - p.x, dy = q.y - p.y, len = Math.hypot(dx, dy) || 1;
		const mx = (p.x + q.x) / 2, my = (p.y + q.y) / 2;
		const side = dx * (middle.y - p.y) - dy * (middle.x - p.x) < 0 ? 1 : -1; // which side of the part the middle is on
		const bend = side * Math.min(96, len / 3);
		d += `Q${r1(mx + (dy / len) * bend)} ${r1(my - (dx / len) * bend)} ${r1(q.x)} ${r1(q.y)}`;
	}
	return d;
}

// label is the point of the line between two ends at which its text is drawn.
export function label(p, q, middle) {
	const c = control(p, q, middle);
	return { x: (p.x + 2 * c.x + q.x) / 4, y: (p.y + 2 * c.y + q.y) / 4 };
}

const r1 = (x) => Math.round(x * 10) / 10;

// strokeWidth grows with traffic: each factor of 10 adds one pixel.
export const strokeWidth = (rate) => (rate < 100 ? 1.5 : Math.min(8, 1.5 + Math.log10(rate / 100)));
