package api

import (
	"strings"
	"testing"
)

// An answer that this version does not understand is reported without Go's type names.
func TestAnAnswerOfAnotherAgentVersionIsReported(t *testing.T) {
	for answer, says := range map[string]string{
		`{"router":1}`: "the agent's answer is not understood (router): the agent may have another version than this command",
		`[]`:           "the agent's answer is not understood: the agent may have another version than this command",
		`nonsense`:     "restart it with this version",
	} {
		err := decode(200, []byte(answer), &Report{})
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "json") || strings.Contains(err.Error(), "invalid") {
			t.Errorf("the answer %s gave the error %v, want one without Go's type names", answer, err)
		}
	}
}
