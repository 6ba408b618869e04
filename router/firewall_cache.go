package router

import (
	"reflect"
	"slices"
	"sync"
	"time"

	"weft/router/problem"
)

// firewallCache holds the last problems with firewalls, so that `weft status` stays fast where a
// scan takes long. For example, the kernel needs seconds to list a set of 100,000 addresses. Its zero
// value is empty. It is safe for concurrent use; a call during a scan waits for that scan's result.
type firewallCache struct {
	mu       sync.Mutex
	needs    []need
	problems []problem.Problem
	until    time.Time
}

const (
	quickScan  = 100 * time.Millisecond // the result of a scan this short is never cached
	cacheTimes = 50                     // the cache is valid for this many times the duration of its scan
	cacheMax   = time.Minute
)

// get returns the result of scan, or a cached result for the same needs.
func (k *firewallCache) get(needs []need, scan func([]need) ([]problem.Problem, error)) ([]problem.Problem, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	began := time.Now()
	if began.Before(k.until) && reflect.DeepEqual(k.needs, needs) {
		return slices.Clone(k.problems), nil
	}
	found, err := scan(needs)
	if err != nil {
		return nil, err
	}
	k.needs, k.problems, k.until = needs, found, time.Time{}
	if took := time.Since(began); took > quickScan {
		k.until = time.Now().Add(min(cacheTimes*took, cacheMax))
	}
	return slices.Clone(found), nil
}
