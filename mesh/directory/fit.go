package directory

import (
	"cmp"
	"fmt"
	"slices"
)

// FitSet is as much of the endpoints of one peer as can be published together, and says what is
// left out: of the largest, all but their addresses.
func FitSet(endpoints []Endpoint) (fits []Endpoint, left error) {
	const generation = 16 // what a number that is still to come can add
	sizes, total := make([]int, len(endpoints)), 0
	order := make([]int, len(endpoints))
	for i, e := range endpoints {
		sizes[i], order[i] = len(must(encoding.Marshal(e)))+generation, i
		total += sizes[i]
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sizes[b], sizes[a]) })
	fits = slices.Clone(endpoints)
	n := 0
	for ; n < len(order) && total > maxSet; n++ {
		i := order[n]
		e := &fits[i]
		*e = Endpoint{ID: e.ID, Slots: e.Slots, IPv4Only: e.IPv4Only}
		total += len(must(encoding.Marshal(*e))) + generation - sizes[i]
	}
	if n > 0 {
		left = fmt.Errorf("%w: the largest %d, such as %s, have no DNS name, and no selector of another host's policies chooses them: shorten their labels and names",
			ErrTooLarge, n, fits[order[0]].ID)
	}
	return fits, left
}

// Fit is as much of an endpoint as can be published, and says what is left out. What others
// accept must get a network: a bound of the directory costs what is out of it, never the
// endpoint.
//
// A name or a port is left out alone. Without one of its labels, or its namespace, an endpoint
// would be another one, whom a policy may let in (NotIn, DoesNotExist): then only its id is
// published, so that for the policies of other hosts it is nobody.
func (e Endpoint) Fit() (fits Endpoint, left []string) {
	nobody := func(why error) (Endpoint, []string) {
		return Endpoint{ID: e.ID}, []string{fmt.Sprintf("all but its addresses, so that it has no DNS name, and no selector of another host's policies chooses it (%v)", why)}
	}
	if e.Namespace != "" {
		if err := CheckName(e.Namespace); err != nil {
			return nobody(fmt.Errorf("namespace: %w", err))
		}
	}
	if err := checkLabels(e.Labels); err != nil {
		return nobody(err)
	}
	fits = e
	if e.Name != "" {
		if err := CheckName(e.Names()[0]); err != nil { // the longest
			fits.Name = ""
			left = append(left, fmt.Sprintf("its DNS name (%v)", err))
		}
	}
	fits.Ports = nil
	many := 0
	for _, p := range e.Ports {
		switch err := p.Check(); {
		case err != nil:
			left = append(left, err.Error())
		case len(fits.Ports) == maxPorts:
			many++
		default:
			fits.Ports = append(fits.Ports, p)
		}
	}
	if many > 0 {
		left = append(left, fmt.Sprintf("%d ports with a name (at most %d fit)", many, maxPorts))
	}
	return fits, left
}
