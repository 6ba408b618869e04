package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"weft/prog/api"
	"weft/prog/words"
)

// chosen returns the endpoints that the arguments name, in the order of all. An argument that matches
// none is an error.
func chosen(ctx context.Context, all []api.Endpoint, named []string) ([]api.Endpoint, error) {
	keep := make([]bool, len(all))
	for _, word := range named {
		if word == "" {
			return nil, words.Misused(errors.New("a container's name is empty: give an id, a name, a PID or a path"))
		}
		matches := containersOf(all, word)
		if !slices.Contains(matches, true) {
			if c, err := findContainer(ctx, word); err == nil { // the argument is a PID, a path, or a name that only Docker knows
				matches = containersOf(all, c.id)
			}
		}
		if !slices.Contains(matches, true) {
			return nil, fmt.Errorf("%s is not attached to this host (`weft ps` lists the attached containers)", word)
		}
		for i, match := range matches {
			keep[i] = keep[i] || match
		}
	}
	out := []api.Endpoint{}
	for i, e := range all {
		if keep[i] {
			out = append(out, e)
		}
	}
	return out, nil
}

// containersOf marks the endpoints of containers with this id or name, with or without namespace. If
// there are none, it marks those whose id begins with the argument.
func containersOf(all []api.Endpoint, word string) []bool {
	exact, begin := make([]bool, len(all)), make([]bool, len(all))
	for i, e := range all {
		exact[i] = e.ContainerID == word || e.Name != "" && (strings.EqualFold(e.Name, word) || strings.EqualFold(e.Namespace+"/"+e.Name, word))
		begin[i] = strings.HasPrefix(e.ContainerID, word)
	}
	if slices.Contains(exact, true) {
		return exact
	}
	return begin
}
