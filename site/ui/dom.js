// Elements of the page, made without markup: text from the network only ever becomes text. A view builds its whole
// tree anew; morph changes the tree in the page where the two differ, so that focus, selection and scrolling stay.
// Elements have no listeners of their own. They name an action, such as data-click="select", and app.js finds it.

const SVG = 'http://www.w3.org/2000/svg';

// h makes an element. A tag such as "svg:path" is one of SVG. In attrs, "style" is an object of properties, "value"
// and "checked" are the state of a field, and other names are attributes; false, null and undefined leave one out.
export function h(tag, attrs, ...children) {
	const el = tag.startsWith('svg:') ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
	for (const [name, value] of Object.entries(attrs ?? {})) {
		if (value === false || value === null || value === undefined) continue;
		if (name === 'style') for (const [k, v] of Object.entries(value)) el.style.setProperty(k, v);
		else if (name === 'value' || name === 'checked') el[name] = value;
		else el.setAttribute(name, value === true ? '' : String(value));
	}
	append(el, children);
	return el;
}

function append(el, children) {
	for (const c of children) {
		if (Array.isArray(c)) append(el, c);
		else if (c instanceof Node) el.append(c);
		else if (c !== null && c !== undefined && c !== false) el.append(String(c));
	}
}

// morph changes a node in the page to what a new node is. It returns the node that is in the page then.
export function morph(old, now) {
	if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName || key(old) !== key(now)) {
		old.replaceWith(now);
		return now;
	}
	if (old.nodeType === Node.TEXT_NODE) {
		if (old.data !== now.data) old.data = now.data;
		return old;
	}
	const version = old.getAttribute('data-version');
	const same = version !== null && version === now.getAttribute('data-version'); // see memo in parts.js
	attributes(old, now);
	if (same) return old;
	fill(old, now.childNodes);
	// The fields that the user is in are the user's.
	if (old.nodeName === 'INPUT' || old.nodeName === 'SELECT') field(old, now);
	return old;
}

// fill changes the children of an element to the given ones. Children with the same data-key are the same child.
export function fill(el, nodes) {
	const wanted = [...nodes];
	const keyed = new Map();
	for (const c of el.childNodes) if (key(c)) keyed.set(key(c), c);
	let at = el.firstChild;
	for (const node of wanted) {
		const same = key(node) ? keyed.get(key(node)) : at && !key(at) && at;
		if (!same) {
			el.insertBefore(node, at);
			continue;
		}
		if (same !== at) el.insertBefore(same, at);
		keyed.delete(key(node));
		const kept = morph(same, node);
		at = kept.nextSibling;
	}
	while (at) {
		const next = at.nextSibling;
		at.remove();
		at = next;
	}
}

function key(node) {
	return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute('data-key') : null;
}

function attributes(old, now) {
	for (const { name } of [...old.attributes]) if (name !== 'style' && !now.hasAttribute(name)) old.removeAttribute(name);
	for (const { name, value } of now.attributes) {
		if (name !== 'style' && old.getAttribute(name) !== value) old.setAttribute(name, value);
	}
	// The policy of the page forbids the attribute style, but not the properties.
	if (old.style && old.style.cssText !== now.style.cssText) old.style.cssText = now.style.cssText;
}

function field(old, now) {
	if (old === document.activeElement && old.type !== 'checkbox') return;
	if (old.value !== now.value) old.value = now.value;
	if (old.checked !== now.checked) old.checked = now.checked;
}
