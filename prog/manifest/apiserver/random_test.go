package apiserver

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The API server and weft policy apply accept the same policies with the same meaning. The policies
// are random, with typical mistakes. SOAK=n tests n policies, SEED=n tests the policy of one seed.
func TestWeftAndAPIServerAgreeOnRandomPolicies(t *testing.T) {
	count, seed := uint64(10_000), uint64(0)
	for name, into := range map[string]*uint64{"SOAK": &count, "SEED": &seed} {
		if n, err := strconv.ParseUint(os.Getenv(name), 10, 64); err == nil {
			*into = n
		}
	}
	end := seed + count
	if seed > 0 {
		end = seed + 1
	}
	taken, failed := 0, 0
	for ; seed < end && failed < 5; seed++ {
		r := random{rand.New(rand.NewPCG(seed, 0))}
		text := r.text()
		if _, err := apply(text); err == nil {
			taken++
		}
		if why := compare(t, text); why != "" {
			t.Errorf("SEED=%d: the results differ, want the same: %s\n%s", seed, why, text)
			failed++
		}
	}
	if count >= 10_000 && (taken < int(count/10) || taken > int(count*9/10)) {
		t.Errorf("%d of %d random policies were accepted: want between a tenth and nine tenths", taken, count)
	}
	t.Logf("%d of %d random policies were accepted", taken, count)
	for i, d := range differences {
		t.Logf("%d times: %s", excuses[i], d.name)
	}
}

// FuzzPolicies searches for texts on which Weft and the API server differ.
func FuzzPolicies(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(random{rand.New(rand.NewPCG(seed, 0))}.text())
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if strings.Contains(string(text), "---") || strings.Contains(string(text), "...") {
			return // the API server reads one document and ignores the others
		}
		if why := compare(t, text); why != "" {
			t.Errorf("the results differ, want the same: %s\n%s", why, text)
		}
	})
}

// random makes policies that are mostly valid.
type random struct{ *rand.Rand }

func one[T any](r random, list ...T) T { return list[r.IntN(len(list))] }

// rarely is true once in n times.
func (r random) rarely(n int) bool { return r.IntN(n) == 0 }

// text returns a manifest, sometimes with mistakes in its YAML.
func (r random) text() []byte {
	data, err := yaml.Marshal(r.policy())
	if err != nil {
		panic(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	for r.rarely(4) {
		lines = r.misprint(lines)
	}
	return []byte(strings.Join(lines, "\n") + "\n")
}

// misprint changes one line.
func (r random) misprint(lines []string) []string {
	if len(lines) == 0 {
		return lines
	}
	i := r.IntN(len(lines))
	line := lines[i]
	key, _, _ := strings.Cut(line, ":")
	indent := len(line) - len(strings.TrimLeft(line, " -"))
	switch r.IntN(7) {
	case 0:
		return slices.Delete(lines, i, i+1)
	case 1:
		return slices.Insert(lines, i, line)
	case 2:
		lines[i] = "  " + line
	case 3:
		lines[i] = strings.TrimPrefix(line, "  ")
	case 4:
		lines[i] = strings.Replace(line, "- ", "  ", 1)
	case 5:
		lines[i] = key + ": " + r.scalar()
	default:
		lines[i] = line[:indent] + r.scalar() + ": " + one(r, "a", "{}", "[]")
	}
	return lines
}

// scalar returns a scalar that YAML parsers read differently.
func (r random) scalar() string {
	return one(r, "yes", "no", "y", "on", "Off", "true", "~", "null", "0x1F", "012", "0o14", "1_000", "+1", "1.", ".5", "1e3", ".inf", "1:20",
		"2026-01-31", "2026-01-31T12:00:00Z", "!!str 5", "!!int \"5\"", "'a'", `"\u00e9"`, "|", "=", "<<", "@a", "a: b", "[a", "{a: b}", "a #b", "\ta", "")
}

// policy returns a policy as a map of fields.
func (r random) policy() any {
	out := r.fields(map[string]any{
		"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": r.metadata(), "spec": r.spec(),
	})
	if r.rarely(30) {
		out["status"] = map[string]any{}
	}
	if r.rarely(40) {
		out["apiVersion"] = one[any](r, "networking.k8s.io/v1beta1", "networking.k8s.io/v9", "v1", "", 1, nil)
	}
	if r.rarely(40) {
		out["kind"] = one[any](r, "networkpolicy", "Ingress", "", 1, nil)
	}
	return out
}

// fields returns a map of fields, sometimes with one missing or one too many.
func (r random) fields(all map[string]any) map[string]any {
	if r.rarely(150) {
		all[one(r, "extra", "PodSelector", "podselector", "from", "spec", "")] = r.odd()
	}
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		switch {
		case r.rarely(250):
			delete(all, name)
		case r.rarely(250):
			all[name] = r.odd()
		}
	}
	return all
}

// odd returns a value of a random type.
func (r random) odd() any {
	return one[any](r, nil, 1, 0, -1, 1.5, true, "", "x", "1", []any{}, []any{nil}, []any{"x"}, []any{1}, map[string]any{}, map[string]any{"a": "b"}, map[string]any{"a": nil})
}

// some returns up to n values of make.
func some(r random, n int, make func() any) []any {
	out := []any{}
	for range r.IntN(n + 1) {
		out = append(out, make())
	}
	return out
}

func (r random) metadata() any {
	out := map[string]any{"name": one(r, "p", "p", "p", "p", "p.q", "0", one(r, "p", r.word()))}
	for _, f := range []struct {
		name string
		make func() any
	}{
		{"namespace", func() any { return one(r, "a", "shop", "kube-system", r.word()) }},
		{"labels", r.labels},
		{"annotations", r.annotations},
		{"finalizers", func() any { return []any{one(r, "a.b/c", "x", "", "a b", "foregroundDeletion")} }},
		{"generateName", func() any { return one(r, "p-", "P", "") }},
		{"generation", func() any { return one(r, 1, 0, -1) }},
		{"creationTimestamp", func() any { return one[any](r, nil, "2026-01-31T12:00:00Z", "2026-01-31", 7) }},
		{"resourceVersion", func() any { return one[any](r, "7", 7) }},
		{"uid", func() any { return one[any](r, "1b4e28ba", "", 7) }},
		{"selfLink", func() any { return "/apis" }},
		{"managedFields", r.managedFields},
		{"ownerReferences", r.ownerReferences},
	} {
		if r.rarely(12) {
			out[f.name] = f.make()
		}
	}
	return r.fields(out)
}

func (r random) managedFields() any {
	return []any{r.fields(map[string]any{
		"manager": one(r, "kubectl", strings.Repeat("m", 129)), "operation": one(r, "Update", "Apply", "Delete", ""), "apiVersion": "networking.k8s.io/v1",
		"fieldsType": one(r, "FieldsV1", "FieldsV2"), "fieldsV1": map[string]any{"f:spec": map[string]any{".": map[string]any{}}}, "time": "2026-01-31T12:00:00Z",
	})}
}

func (r random) ownerReferences() any {
	return some(r, 2, func() any {
		return r.fields(map[string]any{"apiVersion": one(r, "v1", ""), "kind": one(r, "Pod", "Event", ""), "name": one(r, "a", ""), "uid": one(r, "u", ""), "controller": one[any](r, true, false, nil)})
	})
}

func (r random) annotations() any {
	return map[string]any{one(r, "a", "a/b", "note.example/x", "A_b", r.key()): one[any](r, "x", "", "a b", 1), "weft.internal/audit": one(r, "true", "false", "true", "false", "True")}
}

// word returns a text that is no valid name.
func (r random) word() string {
	return one(r, "", "p_q", "P", "-p", "p-", "p..q", "p/q", "p q", "é", strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a.", 127)+"a", strings.Repeat("a", 254))
}

// key returns a text that is no valid label key.
func (r random) key() string {
	return one(r, "", "app=db", "a/b/c", "/a", "a/", "-a", "a-", "a b", "é", "A.b/c", strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a", 254)+"/b", "yes", "1")
}

func (r random) labels() any {
	out := map[string]any{}
	for range r.IntN(3) {
		key, value := one(r, "app", "tier", "app.kubernetes.io/name", "a_b.c"), one[any](r, "db", "web", "", "a.b_c-d", "1.10")
		switch {
		case r.rarely(40):
			key = r.key()
		case r.rarely(40):
			value = one[any](r, "a b", "-a", "a-", "é", strings.Repeat("a", 63), strings.Repeat("a", 64), 1.10, true, nil, []any{"a"})
		}
		out[key] = value
	}
	return out
}

func (r random) selector() any {
	out := map[string]any{}
	if !r.rarely(3) {
		out["matchLabels"] = r.labels()
	}
	if r.rarely(3) {
		out["matchExpressions"] = some(r, 2, r.requirement)
	}
	return r.fields(out)
}

func (r random) requirement() any {
	values := some(r, 2, func() any {
		return one[any](r, "a", "b", "", "a.b", "a", "b", one[any](r, "a b", "-a", strings.Repeat("a", 64), 1, true, nil))
	})
	out := map[string]any{"key": one(r, "app", "tier", "a/b", "app", one(r, "app", r.key())), "operator": one(r, "In", "NotIn", "In", "NotIn", "Exists", "DoesNotExist", one(r, "Exists", "in", "Gt", ""))}
	if s := out["operator"].(string); strings.HasSuffix(s, "In") != r.rarely(8) || r.rarely(30) {
		out["values"] = values
	}
	return r.fields(out)
}

func (r random) cidr() string {
	good := one(r, "10.0.0.0/8", "10.0.0.0/24", "10.0.1.0/24", "2001:db8::/32", "0.0.0.0/0", "::/0", "192.0.2.128/25")
	switch r.IntN(12) {
	case 0:
		return one(r, "10.200.000.0/24", "010.1.2.0/024", "10.1.2.3/8", "::ffff:10.0.0.0/104", "::ffff:10.0.1.0/120", "::ffff:a00:0/100", "::ffff:0:0/96", "::ffff:10.0.0.0/90",
			"0:0:0:0:0:ffff:10.0.0.0/112", "2001:DB8::1/32", "2001:0db8::/32", "::10.0.0.0/104", "::ffff:010.0.0.0/104", "0x0a.0.0.0/8", "256.0.0.0/8", "10.0.0.0/33", "10.0.0.0", "", "10.0.0/24",
			"fe80::%eth0/64", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8 ", "::/129", "10.0.0.0/8/8", "/8", "1.1.1.1.1/8", "::1::/8", "0000.0.0.0/8", "10.0.0.0/0000008")
	case 1:
		return fmt.Sprintf(one(r, "%d.%d.%d.0/%d", "10.%[2]d.%[1]d.0/%[4]d", "::ffff:10.%d.%d.%d/%d"), r.IntN(12), r.IntN(3), r.IntN(300), one(r, 8, 16, 24, 25, 32, 96+r.IntN(34)))
	}
	return good
}

func (r random) peer() any {
	out := map[string]any{}
	switch r.IntN(5) {
	case 0, 1:
		block := map[string]any{"cidr": r.cidr()}
		if r.rarely(2) {
			block["except"] = some(r, 2, func() any { return one(r, r.cidr(), "10.0.0.0/28", "10.0.0.16/28", "10.0.0.128/25", "2001:db8:1::/48") })
		}
		out["ipBlock"] = r.fields(block)
	case 2:
		out["podSelector"] = r.selector()
	case 3:
		out["namespaceSelector"] = r.selector()
	default:
		out["podSelector"], out["namespaceSelector"] = r.selector(), r.selector()
	}
	if r.rarely(30) {
		out["ipBlock"] = map[string]any{"cidr": r.cidr()}
	}
	return r.fields(out)
}

func (r random) port() any {
	out := map[string]any{}
	if !r.rarely(4) {
		out["port"] = one[any](r, 80, 443, 1, 65535, "http", "a-1", one[any](r, 80, 0, -1, 65536, 2147483648, 1.5, "80", "a--b", "-a", "a-", "A", "é", "", strings.Repeat("a", 16)))
	}
	if !r.rarely(3) {
		out["protocol"] = one(r, "TCP", "UDP", "SCTP", "TCP", one(r, "TCP", "", "tcp", "ICMP", "QUIC", "6"))
	}
	if r.rarely(6) {
		out["endPort"] = one[any](r, 80, 443, 65535, 0, -1, 65536, "90")
	}
	return r.fields(out)
}

func (r random) rules(peers string) any {
	return some(r, 2, func() any {
		out := map[string]any{}
		if !r.rarely(3) {
			out[peers] = some(r, 2, r.peer)
		}
		if !r.rarely(3) {
			out["ports"] = some(r, 2, r.port)
		}
		return r.fields(out)
	})
}

func (r random) spec() any {
	out := map[string]any{"podSelector": r.selector()}
	if !r.rarely(3) {
		out["ingress"] = r.rules("from")
	}
	if r.rarely(2) {
		out["egress"] = r.rules("to")
	}
	if r.rarely(2) {
		out["policyTypes"] = some(r, 2, func() any {
			return one(r, "Ingress", "Egress", "Ingress", "Egress", one(r, "Egress", "ingress", "Both", ""))
		})
		if r.rarely(20) {
			out["policyTypes"] = []any{"Ingress", "Egress", "Ingress"}
		}
	}
	return r.fields(out)
}
