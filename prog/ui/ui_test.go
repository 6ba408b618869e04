package ui

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"weft/prog/api"
	page "weft/site/ui"
)

const token = "a-token"

// agent answers with its fields, or with err.
type agent struct {
	network api.Network
	err     error
	asked   []any
}

func (a *agent) Network(context.Context) (api.Network, error) { return a.network, a.err }
func (a *agent) NetworkEndpoints(context.Context) (api.NetworkEndpoints, error) {
	return api.NetworkEndpoints{}, a.err
}

func (a *agent) HostReport(_ context.Context, in api.HostRequest) (api.Report, error) {
	a.asked = append(a.asked, in)
	return api.Report{}, a.err
}

func (a *agent) Matrix(_ context.Context, in api.MatrixRequest) (api.Matrix, error) {
	a.asked = append(a.asked, in)
	return api.Matrix{}, a.err
}

func (a *agent) Flows(_ context.Context, in api.FlowsRequest) (api.FlowsReply, error) {
	a.asked = append(a.asked, in)
	return api.FlowsReply{}, a.err
}

func (a *agent) Explain(_ context.Context, in api.ExplainRequest) (api.Explanation, error) {
	a.asked = append(a.asked, in)
	return api.Explanation{Port: "80/TCP"}, a.err
}

func handler(a Agent) http.Handler {
	return Handler(Config{
		Agent: a, Token: token, Hosts: []string{"127.0.0.1", "::1", "localhost", "h1.example"}, Version: "v9",
		Words: func(e api.Explanation) string { return "explained " + e.Port },
	})
}

// request makes a request as the page does; change may alter it.
func request(method, path, body string, change func(*http.Request)) *http.Request {
	r := httptest.NewRequest(method, "http://127.0.0.1:6786"+path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Origin", "http://127.0.0.1:6786")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if change != nil {
		change(r)
	}
	return r
}

func send(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestOnlyThePageWithTheTokenReachesTheAgent(t *testing.T) {
	set := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	host := func(name string) func(*http.Request) {
		return func(r *http.Request) { r.Host = name; r.Header.Set("Origin", "http://"+name) }
	}
	for name, c := range map[string]struct {
		change func(*http.Request)
		want   int
	}{
		"as the page sends it":                    {nil, 200},
		"without an origin, as curl sends it":     {func(r *http.Request) { r.Header.Del("Origin"); r.Header.Del("Sec-Fetch-Site") }, 200},
		"through a tunnel with another port":      {host("localhost:9999"), 200},
		"to the IPv6 address":                     {host("[::1]:6786"), 200},
		"to another spelling of the IPv6 address": {host("[0:0:0:0:0:0:0:1]:6786"), 200},
		"to the name, in capitals":                {host("H1.Example:6786"), 200},
		"no token":                                {func(r *http.Request) { r.Header.Del("Authorization") }, 401},
		"a wrong token":                           {set("Authorization", "Bearer b-token"), 401},
		"the beginning of the token":              {set("Authorization", "Bearer a-toke"), 401},
		"the token without its kind":              {set("Authorization", token), 401},
		"a name that an attacker lets lead here":  {host("evil.example:6786"), 421},
		"the address as part of a name":           {host("127.0.0.1.evil.example"), 421},
		"another address":                         {host("192.0.2.1:6786"), 421},
		"no host":                                 {func(r *http.Request) { r.Host = "" }, 421},
		"a host that is none":                     {host("127.0.0.1:x"), 421},
		"another origin":                          {set("Origin", "http://evil.example"), 403},
		"an origin of another port":               {set("Origin", "http://127.0.0.1:80"), 403},
		"an origin of another scheme":             {set("Origin", "https://127.0.0.1:6786"), 403},
		"an opaque origin":                        {set("Origin", "null"), 403},
		"two origins":                             {func(r *http.Request) { r.Header.Add("Origin", "http://127.0.0.1:6786") }, 403},
		"a page of another site":                  {set("Sec-Fetch-Site", "cross-site"), 403},
		"a page of the same site":                 {set("Sec-Fetch-Site", "same-site"), 403},
		"a form":                                  {set("Content-Type", "text/plain"), 415},
	} {
		w := send(handler(&agent{}), request("POST", "/api/network", "", c.change))
		if w.Code != c.want {
			t.Errorf("%s: status %d, want %d: %s", name, w.Code, c.want, w.Body)
		}
		if strings.Contains(w.Body.String(), token) {
			t.Errorf("%s: the answer has the token, want none: %s", name, w.Body)
		}
	}
}

func TestAnswersCarryTheAgentsWords(t *testing.T) {
	for name, c := range map[string]struct {
		path, body string
		err        error
		want       string
		asked      any
	}{
		"about":                  {"/api/about", "", nil, `{"answer":{"version":"v9"}}`, nil},
		"an explanation":         {"/api/explain", `{"source":"a","destination":"b","port":80}`, nil, `"text":"explained 80/TCP"`, api.ExplainRequest{Source: "a", Destination: "b", Port: 80}},
		"flows after others":     {"/api/flows", `{"allHosts":true,"after":{"p":7}}`, nil, `"answer"`, api.FlowsRequest{AllHosts: true, After: map[string]uint64{"p": 7}}},
		"the matrix of two":      {"/api/matrix", `{"from":"a","to":"b"}`, nil, `"answer"`, api.MatrixRequest{From: "a", To: "b"}},
		"a report":               {"/api/host", `{"peer":"h2"}`, nil, `"answer"`, api.HostRequest{Peer: "h2"}},
		"a refusal of the agent": {"/api/host", `{"peer":"h9"}`, &api.Error{Code: api.CodeNotFound, Message: "no peer h9"}, `{"error":{"code":"not-found","message":"no peer h9"}}`, api.HostRequest{Peer: "h9"}},
		"an agent that is gone":  {"/api/network", "", &api.NotRunningError{Socket: "/s", Err: errors.New("refused")}, "is not running on this host", nil},
	} {
		a := &agent{err: c.err}
		w := send(handler(a), request("POST", c.path, c.body, nil))
		if w.Code != 200 || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: status %d, %s; want 200 and %s", name, w.Code, w.Body, c.want)
		}
		if c.asked != nil && (len(a.asked) != 1 || !reflect.DeepEqual(a.asked[0], c.asked)) {
			t.Errorf("%s: the agent was asked %v, want %v", name, a.asked, c.asked)
		}
	}
}

func TestBadRequestsDoNotReachTheAgent(t *testing.T) {
	for name, c := range map[string]struct {
		method, path, body string
		want               int
	}{
		"a body that is no JSON":         {"POST", "/api/host", "{", 400},
		"two bodies":                     {"POST", "/api/host", "{}{}", 400},
		"a body that is too large":       {"POST", "/api/host", `{"peer":"` + strings.Repeat("x", maxBody) + `"}`, 400},
		"a value of the wrong type":      {"POST", "/api/host", `{"peer":7}`, 400},
		"a question that does not exist": {"POST", "/api/stop", "{}", 404},
		"a path of the control socket":   {"POST", "/v1/stop", "{}", 405},
		"the wrong method":               {"GET", "/api/host", "", 404},
		"a change of a file":             {"PUT", "/app.js", "x", 405},
		"a file that does not exist":     {"GET", "/none.js", "", 404},
		"the Go file beside the page":    {"GET", "/embed.go", "", 404},
		"a path out of the page":         {"GET", "/../prog/ui.go", "", 307},
	} {
		a := &agent{}
		w := send(handler(a), request(c.method, c.path, c.body, nil))
		if w.Code != c.want || len(a.asked) > 0 {
			t.Errorf("%s: status %d, the agent was asked %v; want status %d and no question", name, w.Code, a.asked, c.want)
		}
	}
}

func TestTheAgentHasNoMethodThatChangesAnything(t *testing.T) {
	allowed := map[string]bool{"Network": true, "NetworkEndpoints": true, "HostReport": true, "Matrix": true, "Flows": true, "Explain": true}
	for m := range reflect.TypeFor[Agent]().Methods() {
		if !allowed[m.Name] {
			t.Errorf("the page may call %s, want only questions", m.Name)
		}
	}
	var _ Agent = (*api.Client)(nil)
}

// Every file of the page can be loaded without the token, has no secret and no markup with code, and refers only to
// files of the page.
func TestThePageLoadsOnlyItsOwnFiles(t *testing.T) {
	total := 0
	elsewhere := regexp.MustCompile(`(?i)(https?:)?//[a-z0-9]|url\(\s*["']?[a-z]+:|\sstyle=|\son[a-z]+=|<script>|<style|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`)
	err := fs.WalkDir(page.Files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		w := send(handler(&agent{}), request("GET", "/"+name, "", func(r *http.Request) {
			r.Header.Del("Authorization")
			r.Header.Del("Origin")
		}))
		data := w.Body.String()
		total += len(data)
		if w.Code != 200 || data == "" {
			t.Errorf("%s: status %d and %d bytes, want the file", name, w.Code, len(data))
		}
		data = strings.ReplaceAll(data, "http://www.w3.org/2000/svg", "")
		for line := range strings.Lines(data) {
			if before, _, comment := strings.Cut(line, "// "); comment {
				line = before
			}
			if m := elsewhere.FindString(line); m != "" {
				t.Errorf("%s has %q, want no resource from elsewhere and no markup with code: %s", name, m, line)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if total > 150<<10 {
		t.Errorf("the page has %d kB, want at most 150", total>>10)
	}
	t.Logf("the page has %d kB", total>>10)
}

func TestAnswersTellTheBrowserToKeepThePageApart(t *testing.T) {
	for _, path := range []string{"/", "/app.js", "/none", "/api/network"} {
		h := send(handler(&agent{}), request("GET", path, "", nil)).Header()
		csp := h.Get("Content-Security-Policy")
		for _, part := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"} {
			if !strings.Contains(csp, part) {
				t.Errorf("%s: the policy %q lacks %s, want it", path, csp, part)
			}
		}
		if strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") {
			t.Errorf("%s: the policy %q has an exception, want none", path, csp)
		}
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin"} {
			if h.Get(name) != want {
				t.Errorf("%s: %s is %q, want %q", path, name, h.Get(name), want)
			}
		}
	}
}

func TestLinksMayLeadToThePage(t *testing.T) {
	follow := func(mode string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Del("Origin")
			r.Header.Set("Sec-Fetch-Site", "cross-site")
			r.Header.Set("Sec-Fetch-Mode", mode)
		}
	}
	if w := send(handler(&agent{}), request("GET", "/", "", follow("navigate"))); w.Code != 200 {
		t.Errorf("a link to the page: status %d, want 200", w.Code)
	}
	if w := send(handler(&agent{}), request("GET", "/app.js", "", follow("no-cors"))); w.Code != 403 {
		t.Errorf("a script that another page includes: status %d, want 403", w.Code)
	}
}

func TestLargeAnswersAreCompressed(t *testing.T) {
	a := &agent{}
	for range 200 {
		a.network.Hosts = append(a.network.Hosts, api.Host{Nickname: "some-host"})
	}
	w := send(handler(a), request("POST", "/api/network", "", func(r *http.Request) { r.Header.Set("Accept-Encoding", "gzip, br") }))
	z, err := gzip.NewReader(w.Body)
	if err != nil || w.Header().Get("Content-Encoding") != "gzip" {
		t.Fatalf("the answer is not compressed: %v", err)
	}
	data, err := io.ReadAll(z)
	var out struct{ Answer api.Network }
	if err := errors.Join(err, json.Unmarshal(data, &out)); err != nil || len(out.Answer.Hosts) != 200 {
		t.Errorf("the answer has %d hosts, error %v; want 200", len(out.Answer.Hosts), err)
	}
}

func TestTokensDiffer(t *testing.T) {
	a, b := NewToken(), NewToken()
	if a == b || len(a) != 43 {
		t.Errorf("tokens %q and %q, want two of 256 bits", a, b)
	}
}

func FuzzHostHeader(f *testing.F) {
	for _, s := range []string{"127.0.0.1:6786", "[::1]:1", "localhost", "::1", "[", "]:", "a:b:c", "127.0.0.1.", "[::1%eth0]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, host string) {
		name := bare(host)
		if addressed(host, []string{"127.0.0.1"}) && !strings.Contains(host, "127.0.0.1") && !strings.Contains(strings.ToLower(host), "7f00:1") {
			t.Errorf("%q counts as 127.0.0.1 (%q), want only its spellings", host, name)
		}
	})
}

func FuzzRequestBody(f *testing.F) {
	f.Add([]byte(`{"from":"a/b","after":{"x":1},"port":80}`))
	f.Add([]byte(`{}{}`))
	f.Fuzz(func(_ *testing.T, body []byte) {
		a := &agent{}
		h := handler(a)
		for _, path := range []string{"/api/flows", "/api/explain", "/api/matrix", "/api/host"} {
			send(h, request("POST", path, string(body), nil)) // must not panic
		}
	})
}
