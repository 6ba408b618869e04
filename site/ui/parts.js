// Pieces that several views use.
import { h } from './dom.js';

// Each icon is a path in a square of 16. Icons accompany a text: they are hidden from screen readers.
const shapes = {
	ok: 'M3 8.5l3.2 3.2L13 5', bad: 'M4 4l8 8M12 4l-8 8', warn: 'M8 2.2L14.6 13.6H1.4ZM8 6.2v3.6M8 11.6v.4',
	idle: 'M3 8h10', info: 'M8 7v5M8 4v.4', relay: 'M1.5 11.5C4 3 12 3 14.5 11.5M12 10l2.6 1.6L15.4 8.6',
	half: 'M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 1 0 0 -11M8 2.5v11', full: 'M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 1 0 0 -11',
	search: 'M7 2.5a4.5 4.5 0 1 0 0 9a4.5 4.5 0 1 0 0 -9M10.4 10.4L14 14', close: 'M4 4l8 8M12 4l-8 8',
	plus: 'M8 3v10M3 8h10', minus: 'M3 8h10', fit: 'M2.5 6V2.5H6M10 2.5h3.5V6M13.5 10v3.5H10M6 13.5H2.5V10',
	pause: 'M5.5 3v10M10.5 3v10', play: 'M4.5 3l8 5-8 5Z', arrow: 'M2.5 8h11M9.5 4l4 4-4 4', back: 'M13.5 8h-11M6.5 4l-4 4 4 4',
	mesh: 'M3.5 4.5L12.5 4.5L8 12.5ZM3.5 4.5h.01M12.5 4.5h.01M8 12.5h.01', ring: 'M1.5 5h13v6h-13ZM6 5v6M9 5v6',
	endpoints: 'M2.5 3.5h11M2.5 8h11M2.5 12.5h11', access: 'M2.5 2.5h4v4h-4ZM9.5 2.5h4v4h-4ZM2.5 9.5h4v4h-4ZM9.5 9.5h4v4h-4Z',
	flows: 'M1.5 5h11M9.5 2l3 3-3 3M14.5 11h-11M6.5 8l-3 3 3 3', health: 'M1.5 8.5h3l2-5 3 9 2-4h3',
	sun: 'M8 5a3 3 0 1 0 0 6a3 3 0 1 0 0 -6M8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15M3 3l1 1M12 12l1 1M13 3l-1 1M4 12l-1 1',
	moon: 'M13.5 9.8A6 6 0 1 1 6.2 2.5a4.8 4.8 0 0 0 7.3 7.3Z',
};

export function icon(name, size = 16) {
	return h('svg:svg', { viewBox: '0 0 16 16', width: size, height: size, class: `icon icon-${name}`, 'aria-hidden': 'true', focusable: 'false' }, h('svg:path', { d: shapes[name] }));
}

const glyph = { ok: 'ok', warn: 'warn', bad: 'bad', idle: 'idle', info: 'info' };

// badge is a state: its kind chooses the colour and the shape, its text says it.
export const badge = (kind, text, shape) => h('span', { class: `badge ${kind}` }, icon(shape ?? glyph[kind] ?? 'idle', 12), h('span', {}, text));

export const button = (text, action, arg, attrs = {}) => h('button', { type: 'button', class: 'button', 'data-click': action, 'data-arg': arg, ...attrs }, text);

export const iconButton = (shape, text, action, arg, attrs = {}) =>
	h('button', { type: 'button', class: 'iconbutton', 'data-click': action, 'data-arg': arg, 'aria-label': text, title: text, ...attrs }, icon(shape));

// searchField is a field that selects while its user types.
export const searchField = (action, label, value, attrs = {}) =>
	h('label', { class: 'search' }, icon('search'), h('span', { class: 'unseen' }, label),
		h('input', { type: 'search', placeholder: label, value, 'data-input': action, autocomplete: 'off', spellcheck: 'false', ...attrs }));

// choice is a group of buttons of which one is on.
export const choice = (label, action, options, chosen) =>
	h('div', { class: 'choice', role: 'group', 'aria-label': label },
		options.map(([value, text]) => h('button', { type: 'button', 'data-click': action, 'data-arg': value, 'aria-pressed': String(value === chosen) }, text)));

export const empty = (title, ...text) => h('div', { class: 'empty' }, h('p', { class: 'emptytitle' }, title), text.length ? h('p', {}, text) : null);

export const hostLink = (peer, name) => h('button', { type: 'button', class: 'link', 'data-click': 'openHost', 'data-arg': peer }, name);

// fact is one line of a list of names and values.
export const fact = (name, ...value) => [h('dt', {}, name), h('dd', {}, ...value)];

// code marks the parts of a sentence between backticks as code.
export const prose = (text) => String(text).split('`').map((part, i) => (i % 2 ? h('code', {}, part) : part));

// memo makes the children of an element only if the page has them in no or another version.
export function memo(tag, attrs, version, children) {
	const there = document.querySelector(`[data-key="${CSS.escape(attrs['data-key'])}"]`)?.getAttribute('data-version') === version;
	return h(tag, { ...attrs, 'data-version': version }, there ? null : children());
}

// versions makes a version for memo from what the children depend on: it is another one if a part is.
export function versions() {
	let last = [], version = 0;
	return (...parts) => {
		if (parts.some((p, i) => p !== last[i])) version++;
		last = parts;
		return String(version);
	};
}

const rowHeight = 40;

// table shows rows of any number: only those in sight exist as elements. columns are [title, class]; cell gives the
// cells of a row. state.scroll has the position of each table by its name.
export function table({ name, label, columns, rows, cells, state, click, keyOf, rowClass, selected, note, compact }) {
	const top = state.scroll[name] ?? 0, height = state.room[name] ?? 900;
	const first = Math.max(0, Math.floor(top / rowHeight) - 6), last = Math.min(rows.length, Math.ceil((top + height) / rowHeight) + 6);
	const head = h('div', { role: 'row', class: `row head cols-${name}`, 'aria-rowindex': 1 }, columns.map((c) => h('div', { role: 'columnheader', class: c[1] }, c[0])));
	const body = rows.slice(first, last).map((r, i) => {
		const on = selected !== undefined && keyOf(r) === selected;
		return h('div', {
			role: 'row', class: `row cols-${name} ${rowClass?.(r) ?? ''}${click ? ' clickable' : ''}`, 'data-key': keyOf(r), 'aria-rowindex': first + i + 2,
			tabindex: click ? '0' : null, 'data-click': click, 'data-arg': keyOf(r), 'aria-selected': click ? String(on) : null, 'data-row': name,
		}, cells(r).map((c, n) => h('div', { role: 'cell', class: columns[n][1] }, c)));
	});
	return h('div', { class: `table table-${name}`, role: 'table', 'aria-label': label, 'aria-rowcount': rows.length + 1, 'aria-colcount': columns.length, style: compact ? { 'max-height': `${Math.max(3, rows.length) * rowHeight + 40}px` } : {} },
		h('div', { role: 'rowgroup', class: 'headgroup' }, head),
		h('div', { class: 'scroll', role: 'rowgroup', 'data-scroll': name, tabindex: rows.length && !click ? '0' : null },
			rows.length === 0 ? note : h('div', { class: 'spacer', role: 'presentation', style: { height: `${rows.length * rowHeight}px`, 'padding-top': `${first * rowHeight}px` } }, body)));
}
