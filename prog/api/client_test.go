package api

import (
	"strings"
	"testing"
)

// An answer of another version is reported without Go's type names.
func TestAnAnswerOfAnotherVersionIsNotUnderstood(t *testing.T) {
	for answer, says := range map[string]string{
		`{"router":1}`: "the agent's answer is not understood (router): it may run another version",
		`[]`:           "the agent's answer is not understood: it may run another version",
		`nonsense`:     "restart it with this one",
	} {
		err := decode(200, []byte(answer), &Report{})
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "json") || strings.Contains(err.Error(), "invalid") {
			t.Errorf("the answer %s gave the error %v, want one without Go's type names", answer, err)
		}
	}
}
