package bundle

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"weft/mesh/peer"
	"weft/prog/api"
)

func collector() *Collector {
	return New(Config{
		Self:   peer.ID{1},
		Report: func(context.Context) (api.Report, error) { return api.Report{Version: "v1"}, nil },
		Logs: func(context.Context, api.LogsRequest) (api.LogsReply, error) {
			return api.LogsReply{Lines: []string{"one", "two"}}, nil
		},
		Policies: func(context.Context) ([]api.Policy, error) { return nil, errors.New("not known yet") },
		Rules:    func() string { return "table inet weft {}\n" },
		Find:     func(string) (peer.ID, error) { return peer.ID{1}, nil },
	})
}

// What cannot be read says why, and the rest is there.
func TestAHostIsDescribed(t *testing.T) {
	reply, err := collector().Bundle(t.Context(), api.HostRequest{Peer: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	for name, says := range map[string]string{
		"report.json": `"version": "v1"`, "agent.log": "one\ntwo\n", "policies.json": "not known yet", "rules.nft": "table inet weft", "goroutines.txt": "goroutine profile",
		"system.txt": "kernel ", "links.txt": "lo ", "sysctls.txt": "net.ipv4.ip_forward = ", "routes.txt": "", "ruleset.nft": "",
	} {
		if content, ok := reply.Files[name]; !ok || !strings.Contains(content, says) {
			t.Errorf("%s is %q, want %q in it", name, content, says)
		}
		if !fileName(name) {
			t.Errorf("%s is no valid name of a file", name)
		}
	}
}

func TestFilesTravelToOtherHosts(t *testing.T) {
	answer, err := collector().Handlers()[requestBundle](t.Context(), peer.ID{2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if files, err := unpack(answer); err != nil || files["agent.log"] != "one\ntwo\n" {
		t.Errorf("%d files, error %v; want the log among them", len(files), err)
	}
}

// A log that is too large loses its beginning.
func TestLargeFilesAreCut(t *testing.T) {
	random := make([]byte, 3<<20)
	for i := range random {
		random[i] = byte('a' + rand.N(26))
	}
	data, err := pack(map[string]string{"agent.log": string(random), "report.json": "{}"})
	if err != nil || len(data) > mostReply {
		t.Fatalf("%d bytes, error %v; want at most %d", len(data), err, mostReply)
	}
	files, err := unpack(data)
	if err != nil || files["report.json"] != "{}" || !strings.HasSuffix(files["agent.log"], string(random[len(random)-1000:])) || !strings.HasPrefix(files["agent.log"], "(the beginning") {
		t.Errorf("error %v; the log has %d bytes, want its end", err, len(files["agent.log"]))
	}
}

// A peer cannot choose where its files are written, nor how much memory they take.
func TestForgedAnswersAreRefused(t *testing.T) {
	for _, name := range []string{"../../etc/passwd", "/etc/passwd", ".bashrc", "", "a/b", "A", strings.Repeat("a", 65)} {
		data, err := pack(map[string]string{name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if files, err := unpack(data); err == nil {
			t.Errorf("a file named %q was accepted: %v", name, maps.Keys(files))
		}
	}
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range mostPlain>>20 + 2 {
		if _, err := z.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := unpack(bomb.Bytes()); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an answer that grows without end: error %v, want a refusal", err)
	}
}

func FuzzUnpack(f *testing.F) {
	if data, err := pack(map[string]string{"agent.log": "x"}); err == nil {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		files, err := unpack(data)
		for name := range files {
			if err != nil || !fileName(name) {
				t.Errorf("the file %q came with the error %v", name, err)
			}
		}
	})
}
