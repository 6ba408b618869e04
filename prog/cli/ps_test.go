package cli

import (
	"strings"
	"testing"

	"weft/prog/api"
)

func TestPsListsTheNamedContainers(t *testing.T) {
	self, err := namespaceOf(container{netns: "/proc/self/ns/net"}, "")
	if err != nil {
		t.Fatal(err)
	}
	all := []api.Endpoint{
		{ContainerID: "4f66ad9a0b2e11d4", Interface: "ethwe", Name: "web"},
		{ContainerID: "4f66ad9a0b2e11d4", Interface: "eth1", Name: "web"},
		{ContainerID: "web4711", Interface: "eth0", Name: "db", Namespace: "shop"},
		{ContainerID: self.id, Interface: "ethwe"},
	}
	if _, err := chosen(t.Context(), all, []string{""}); err == nil {
		t.Error("an empty argument was accepted, want an error")
	}
	for words, want := range map[string]string{
		"web": "ethwe eth1", "WEB db": "ethwe eth1 eth0", "shop/db": "eth0", "web4": "eth0", "4f66": "ethwe eth1", "4f66ad9a0b2e11d4": "ethwe eth1",
		"db web": "ethwe eth1 eth0", "/proc/self/ns/net": "ethwe", "nosuch": "", "web nosuch": "",
	} {
		got, err := chosen(t.Context(), all, strings.Fields(words))
		var names []string
		for _, e := range got {
			names = append(names, e.Interface)
		}
		if strings.Join(names, " ") != want || (err == nil) != (want != "") {
			t.Errorf("weft ps %s lists the interfaces %v, error %v; want %q, and an error if that is empty", words, names, err, want)
		}
	}
}
