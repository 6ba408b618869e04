package router

import (
	"reflect"
	"slices"
	"sync"
	"time"
)

// kept are the last warnings about firewalls, so that status stays quick where a look takes
// long: the kernel needs seconds to list a set of 100,000 addresses. Its zero value has none.
// It is safe for concurrent use; who asks during a look gets what that finds.
type kept struct {
	mu       sync.Mutex
	needs    []need
	warnings []string
	until    time.Time
}

const (
	quickLook = 100 * time.Millisecond // what takes no longer is done each time
	keptTimes = 50                     // as long as a look took: the looks take one part in so many
	keptMost  = time.Minute
)

// ask returns what look finds, or what it found lately for the same needs.
func (k *kept) ask(needs []need, look func([]need) ([]string, error)) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	began := time.Now()
	if began.Before(k.until) && reflect.DeepEqual(k.needs, needs) {
		return slices.Clone(k.warnings), nil
	}
	found, err := look(needs)
	if err != nil {
		return nil, err
	}
	k.needs, k.warnings, k.until = needs, found, time.Time{}
	if took := time.Since(began); took > quickLook {
		k.until = time.Now().Add(min(keptTimes*took, keptMost))
	}
	return slices.Clone(found), nil
}
