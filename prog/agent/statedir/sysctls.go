package statedir

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"weft/prog/state"
	"weft/router/link"
)

// RestoreSysctls restores the sysctls that Weft changed, in reverse order. A sysctl that another
// program has changed since keeps its value.
func RestoreSysctls(changed []state.Sysctl) (kept []string) {
	for _, c := range slices.Backward(changed) {
		if !link.SysctlIs(c.Set, c.Name) {
			continue
		}
		if err := link.WriteSysctl(c.Was, c.Name); err != nil && !errors.Is(err, os.ErrNotExist) {
			kept = append(kept, fmt.Sprintf("%v: it was %s before Weft", err, c.Was))
		}
	}
	return kept
}
