// Checks of the page's pure modules. modules_test.go evaluates this in the page, and fails for each returned line.
(async () => {
	const [format, model, layout, ring, filter, explain] = await Promise.all(['format', 'model', 'layout', 'ring', 'filter', 'explain'].map((m) => import(`/${m}.js`)));
	const faults = [];
	const is = (what, have, want) => {
		if (JSON.stringify(have) !== JSON.stringify(want)) faults.push(`${what}: ${JSON.stringify(have)}, want ${JSON.stringify(want)}`);
	};
	const yes = (what, ok) => ok || faults.push(`${what}: want it to hold`);

	for (const [n, text] of [[0, '0 B'], [999, '999 B'], [1000, '1.0 kB'], [99949, '99.9 kB'], [123456, '123 kB'], [999600, '1.0 MB'], [3.2e9, '3.2 GB']]) is(`bytes(${n})`, format.bytes(n), text);
	for (const [s, text] of [[null, 'not measured'], [undefined, 'not measured'], [0.00042, '0.42 ms'], [0.0123, '12.3 ms'], [0.25, '250 ms'], [1.5, '1.5 s'], [0, '0.00 ms']]) is(`roundTrip(${s})`, format.roundTrip(s), text);
	is('rates', [0, 0.4, 1500].map(format.rate), ['idle', 'idle', '1.5 kB/s']);
	is('percents', [0, 0.0001, 0.05, 0.5, 1].map(format.percent), ['0.0 %', '<0.1 %', '5.0 %', '50 %', '100 %']);
	is('counts', [0, 1, 2, 12345].map((n) => format.count(n, 'host')), ['no hosts', '1 host', '2 hosts', '12,345 hosts']);
	is('times', [0, 30e3, 600e3, 7200e3, 3e8].map((ms) => format.ago(0, ms)), ['now', '30 s ago', '10 min ago', '2 h ago', '3 days ago']);
	is('the order of names', ['h10', 'h2', 'h1'].sort(format.natural), ['h1', 'h2', 'h10']);

	const host = (peer, nickname, links = [], more = {}) => ({ peer, nickname, ready: true, state: 'running', links, direct: links.filter((l) => l.state === 'direct').length, ...more });
	const link = (peer, state, more = {}) => ({ peer, state, sentRate: 10, receivedRate: 20, ...more });
	const net = model.build({ hosts: [
		host('c', 'h3', [link('a', 'relayed', { via: ['b'], roundTrip: 0.003 }), link('b', 'direct')]),
		host('a', 'h1', [link('c', 'direct', { roundTrip: 0.002, sentRate: 100 }), link('b', 'direct')]),
		host('b', 'h2', [link('zz', 'direct'), link('b', 'direct')]),
	] });
	is('hosts by name', net.hosts.map((x) => x.nickname), ['h1', 'h2', 'h3']);
	is('links: unknown ends and links to oneself are left out', net.links.map((l) => l.id).sort(), ['a b', 'a c', 'b c']);
	const ac = net.byLink.get('a c');
	is('the worse state counts', [ac.state, ac.via], ['relayed', ['b']]);
	is('the shorter time counts', ac.roundTrip, 0.002);
	is('directions are put together', [ac.sent, ac.received], [100, 20]);
	is('a link in words', model.sentence(net, ac), 'h1 – h3: relayed through h2, round trip 2.00 ms, 120 B/s');
	is('what an absent host said is old', model.build({ hosts: [host('a', 'h1', [link('b', 'direct')], { error: 'gone' }), host('b', 'h2')] }).links, []);
	is('states that the page does not know', model.stateOf('quantum').kind, 'bad');
	is('conditions', [{ state: 'left' }, { state: 'unreachable' }, { state: 'running', error: 'x' }, { state: 'running' }, { state: 'running', ready: true, problems: [{}] }, { state: 'running', ready: true }].map((x) => model.condition(x).text),
		['left', 'unreachable', 'does not answer', 'not ready', '1 problem', 'ready']);
	const healed = model.build({ hosts: [host('a', 'h1', [link('b', 'direct'), link('c', 'direct')]), host('b', 'h2', [link('a', 'direct')]), host('c', 'h3', [link('a', 'direct')])] });
	is('changes in words', model.changes(healed, net), ['Tunnel h1 – h3: relayed through h2, round trip 2.00 ms, 120 B/s.']);
	is('no change, no words', model.changes(net, net), []);
	is('an empty network', model.build({ hosts: null }).totals.hosts, 0);
	const lots = Array.from({ length: 1000 }, (_, i) => ({ id: `${i}`, a: `a${i}`, b: 'b', state: i % 100 ? 'direct' : 'blocked', via: [], sent: i, received: 0 }));
	const some = model.shown(lots, 'a5', 50);
	is('a bounded picture', some.length, 50);
	yes('a bounded picture has all faults', some.filter((l) => l.state === 'blocked').length === 10);
	yes('a bounded picture has the links of the selected host', some.some((l) => l.a === 'a5'));
	yes('a bounded picture has the busiest links', some.some((l) => l.id === '999'));

	for (const n of [0, 1, 2, 3, 8, 28, 29, 60, 100, 500, 1000]) {
		const points = layout.place(n, 900, 600);
		is(`places of ${n} hosts`, points.length, n);
		yes(`the places of ${n} hosts lie in the picture`, points.every((p) => p.x >= 0 && p.x <= 900 && p.y >= 0 && p.y <= 600));
		is(`two of ${n} hosts at one place`, new Set(points.map((p) => `${p.x.toFixed(1)} ${p.y.toFixed(1)}`)).size, n);
		is(`the places of ${n} hosts are always the same`, layout.place(n, 900, 600), points);
	}
	yes('a small picture has no broken places', layout.place(5, 10, 10).every((p) => Number.isFinite(p.x) && Number.isFinite(p.y)));
	const way = layout.through([{ x: 0, y: 0 }, { x: 100, y: 0 }, { x: 100, y: 100 }]);
	yes(`a relayed link passes its relay: ${way}`, /^M0 0Q\S+ \S+ 100 0Q\S+ \S+ 100 100$/.test(way));
	yes('a link between equal places is no error', !layout.through([{ x: 1, y: 1 }, { x: 1, y: 1 }, { x: 1, y: 1 }]).includes('NaN'));
	yes('traffic makes a link wider', layout.strokeWidth(1e6) > layout.strokeWidth(1e3) && layout.strokeWidth(1e12) <= 8);

	is('ranges', [ring.range('10.32.0.0/12'), ring.range('10.32.0.0'), ring.range('300.0.0.0/8'), ring.range('fd00::/8')], [{ start: 169869312, size: 1048576 }, null, null, null]);
	is('an address', ring.address(169869312), '10.32.0.0');
	const owners = [{ ranges: ['10.0.0.0/9'] }, { ranges: ['10.128.0.0/10'] }];
	is('cells', ring.cells(owners, '10.0.0.0/8', 8), [0, 0, 0, 0, 1, 1, -1, -1]);
	is('a small range beside a large one', ring.cells([{ ranges: ['10.0.0.0/9'] }, { ranges: ['10.0.0.0/24'] }], '10.0.0.0/8', 2), [0, -1]);
	is('runs', ring.runs([0, 0, 0, 0, 1, 1, -1, -1], 2), [{ row: 0, x: 0, width: 4, owner: 0 }, { row: 1, x: 0, width: 2, owner: 1 }, { row: 1, x: 2, width: 2, owner: -1 }]);
	is('ranges outside the universe', ring.cells([{ ranges: ['192.0.2.0/24', 'x'] }], '10.0.0.0/8', 2), [-1, -1]);

	const list = filter.index([{ id: '1', namespace: 'shop', name: 'web', labels: { app: 'web' }, addresses: ['10.0.0.1'], peer: 'a' }, { id: '2', peer: 'a' }], () => 'h1');
	const found = (q) => list.filter((e) => filter.matcher(q)(e.text)).length;
	is('searches', ['', 'APP=web h1', '10.0.0.1', 'web nothing', '  '].map(found), [2, 1, 1, 0, 2]);
	is('an endpoint without name', list[0].full, '2');
	is('namespaces', filter.namespaces(list), [{ name: '', many: 1 }, { name: 'shop', many: 1 }]);
	is('ends', [filter.end({ namespace: 'a', name: 'b' }, ''), filter.end({ node: true, peer: '1(h2)' }, ''), filter.end({}, '[fd00::1]:53'), filter.end({}, '192.0.2.1:0')], ['a/b', 'host h2', 'fd00::1', '192.0.2.1']);
	is('ports', [filter.port('[fd00::1]:53'), filter.port('192.0.2.1:8080'), filter.port(undefined)], [53, 8080, 0]);
	is('questions', ['', '80', '53/UDP', 'icmp', '0', '70000', '80/x', 'http'].map(filter.question),
		[{ port: 0, protocol: '' }, { port: 80, protocol: 'TCP' }, { port: 53, protocol: 'UDP' }, { port: 0, protocol: 'ICMP' }, null, null, null, null]);
	const known = new Map(), flow = (id, last, bytes, more) => ({ id, peer: 'p', start: 's', last: new Date(last).toISOString(), from: {}, to: {}, source: '10.0.0.1:1', destination: '10.0.0.2:2', sentBytes: bytes, receivedBytes: 0, ...more });
	filter.merge(known, [flow(1, 1000, 0), flow(2, 2000, 0)], 10);
	const merged = filter.merge(known, [flow(1, 3000, 4000)], 10);
	is('flows, the newest first, with the rate of two reports', merged.map((f) => [f.id, f.sentRate]), [[1, 2000], [2, 0]]);
	is('an ended flow has no rate', filter.merge(known, [flow(1, 4000, 9000, { ended: true })], 10)[0].sentRate, 0);
	is('a bounded list of flows', [filter.merge(known, [flow(3, 5000, 0)], 2).map((f) => f.id), known.size], [[3, 1], 2]);
	const two = (a, b) => filter.collapse([{ ...flow(1, 0, 0), peer: 'p', nickname: 'h1', start: '2026-01-01T00:00:00Z', verdict: 'allowed', sentRate: 1, receivedRate: 0, ...a }, { ...flow(9, 0, 0), peer: 'q', nickname: 'h2', start: '2026-01-01T00:00:01Z', verdict: 'allowed', sentRate: 2, receivedRate: 0, ...b }]);
	is('one row of what both hosts report', two({}, { verdict: 'denied' }).map((f) => [f.seen, f.verdict, f.sentRate]), [[['h1', 'h2'], 'denied', 2]]);
	is('two rows of a port that is used again', two({}, { start: '2026-01-01T01:00:00Z' }).length, 2);
	is('two rows of two connections', two({}, { source: '10.0.0.1:7' }).length, 2);
	is('blocks of an explanation', explain.blocks(['', 'Egress at a', '  b', '    c', '', '', 'Ingress at d']), [['Egress at a', ['b', '  c']], ['Ingress at d', []]]);
	return faults;
})()
