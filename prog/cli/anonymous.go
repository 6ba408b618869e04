package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"weft/prog/api"
)

// words that stay: they are the same in every network.
var common = []string{
	"", "default", "kube-system", "kube-public", "kube-node-lease", "node", "running", "stopped", "left", "unreachable", "removed", "eth0", "weft", "app",
	"name", "true", "false", "tcp", "udp", "sctp", "icmp", "ingress", "egress", "all", "none", "direct", "relayed", "kernel", "userspace",
}

// pseudonyms replace names and parts of labels. The same word always becomes the same pseudonym.
type pseudonyms map[string]string

// add learns a name of an endpoint, namespace, policy, host or label, and each part of it between dots and slashes.
func (p pseudonyms) add(names ...string) {
	for _, name := range names {
		for _, part := range slices.Concat([]string{name}, strings.FieldsFunc(name, func(r rune) bool { return strings.ContainsRune("./", r) })) {
			if !slices.Contains(common, strings.ToLower(part)) && p[part] == "" {
				p[part] = fmt.Sprintf("name-%d", len(p)+1)
			}
		}
	}
}

// token is a word in which a name may stand.
var token = regexp.MustCompile(`[A-Za-z0-9_./-]+`)

// in replaces all names in a text.
func (p pseudonyms) in(text string) string {
	for _, name := range p.unusual() {
		text = strings.ReplaceAll(text, name, p[name])
	}
	return token.ReplaceAllStringFunc(text, func(word string) string {
		if other, ok := p[word]; ok {
			return other
		}
		return eachPart(word, "/", func(part string) string {
			if other, ok := p[part]; ok {
				return other
			}
			return eachPart(part, ".", func(part string) string {
				if other, ok := p[part]; ok {
					return other
				}
				return part
			})
		})
	})
}

// unusual returns the names that are no single word, such as a nickname with a space, the longest ones first.
func (p pseudonyms) unusual() (names []string) {
	for name := range p {
		if token.FindString(name) != name {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	return names
}

func eachPart(word, separator string, f func(string) string) string {
	parts := strings.Split(word, separator)
	for i := range parts {
		parts[i] = f(parts[i])
	}
	return strings.Join(parts, separator)
}

// value replaces names in the strings of a JSON value. The names of fields stay, except for those of labels.
func (p pseudonyms) value(v any, labels bool) any {
	switch v := v.(type) {
	case string:
		return p.in(v)
	case []any:
		for i := range v {
			v[i] = p.value(v[i], false)
		}
	case map[string]any:
		out := map[string]any{}
		for key, inner := range v {
			if labels {
				out[p.in(key)] = p.value(inner, false)
			} else {
				out[key] = p.value(inner, strings.EqualFold(key, "labels") || key == "matchLabels")
			}
		}
		return out
	}
	return v
}

// anonymized returns files without names and labels of endpoints, namespaces, policies and hosts.
func anonymized(files map[string]string) map[string]string {
	p := pseudonyms{}
	for name, content := range files {
		switch name = name[strings.LastIndex(name, "/")+1:]; name {
		case "endpoints.json":
			var list api.NetworkEndpoints
			_ = json.Unmarshal([]byte(content), &list) // without endpoints there are no names
			for _, e := range list.Endpoints {
				p.add(e.Namespace, e.Name)
				if _, id, _ := strings.Cut(e.ID, "/"); id != "" { // HOST/CONTAINER/INTERFACE
					p.add(path.Dir(id))
				}
				p.labels(e.Labels)
			}
		case "network.json":
			var n api.Network
			_ = json.Unmarshal([]byte(content), &n)
			for _, h := range n.Hosts {
				p.add(h.Nickname)
			}
		case "policies.json":
			var list []api.Policy
			_ = json.Unmarshal([]byte(content), &list)
			for _, one := range list {
				p.add(one.Namespace, one.Name)
				for _, word := range strings.FieldsFunc(one.Selector, func(r rune) bool { return strings.ContainsRune("=,()! ", r) }) {
					p.add(word)
				}
			}
		case "report.json":
			var r api.Report
			_ = json.Unmarshal([]byte(content), &r)
			p.add(r.Router.Nickname)
			for _, e := range slices.Concat(r.Endpoints, r.Unattached) {
				p.add(append(e.Aliases, e.Namespace, e.Name, e.ContainerID)...)
				p.labels(e.Labels)
			}
		}
	}
	out := map[string]string{}
	for name, content := range files {
		switch name[strings.LastIndex(name, "/")+1:] {
		case agentLog, "ruleset.nft": // they may have names of endpoints that ended, and of services
			content = leftOut
		case "policies.json":
			content = withoutManifests(content)
		}
		var v any
		if err := json.Unmarshal([]byte(content), &v); err == nil && strings.HasSuffix(name, ".json") {
			content = indented(p.value(v, false))
		} else {
			content = p.in(content)
		}
		out[p.folder(name)] = content
	}
	return out
}

// leftOut stands for what cannot be anonymous.
const leftOut = "(left out: it may have names)\n"

// withoutManifests leaves out the manifests of policies: their rules may have labels that no endpoint has.
func withoutManifests(content string) string {
	var list []api.Policy
	if err := json.Unmarshal([]byte(content), &list); err != nil {
		return leftOut
	}
	for i := range list {
		list[i].Manifest = leftOut
	}
	return indented(list)
}

func (p pseudonyms) labels(labels map[string]string) {
	for key, value := range labels {
		p.add(key, value)
	}
}

// folder replaces the host's name at the beginning of its folder's name: NICKNAME-ID/FILE.
func (p pseudonyms) folder(name string) string {
	dir, file, found := strings.Cut(name, "/")
	i := strings.LastIndex(dir, "-")
	if !found || i < 0 {
		return name
	}
	return p.in(dir[:i]) + dir[i:] + "/" + file
}
