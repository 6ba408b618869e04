package directory

import (
	"cmp"
	"fmt"
	"slices"
)

// FitSet returns as much of one peer's endpoints as can be published together. If they are too
// large together, it keeps only the addresses of the largest endpoints. left then has the number of
// these endpoints, and names one.
func FitSet(endpoints []Endpoint) (fits []Endpoint, left error) {
	const generation = 16 // bytes by which an encoded endpoint can grow when its generation is set, after this
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
		left = fmt.Errorf("%w: the %d largest, for example %s, get no DNS name, and no selector of other hosts' policies matches them: shorten their labels and names",
			ErrTooLarge, n, fits[order[0]].ID)
	}
	return fits, left
}

// Fit returns as much of an endpoint as can be published, and the parts that are left out. A
// container that a runtime accepted must get a network: bounds of the directory cost it a name or
// labels, never more.
//
// A name or a port is left out alone. An endpoint without one of its labels or its namespace could
// match a policy that excludes that label (NotIn, DoesNotExist). So in that case only its id is
// published, and no selector of other hosts' policies matches it.
func (e Endpoint) Fit() (fits Endpoint, left []string) {
	bare := func(why error) (Endpoint, []string) {
		return Endpoint{ID: e.ID}, []string{fmt.Sprintf("all but its addresses: it gets no DNS name, and no selector of other hosts' policies matches it (%v)", why)}
	}
	if e.Namespace != "" {
		if err := CheckName(e.Namespace); err != nil {
			return bare(fmt.Errorf("namespace: %w", err))
		}
	}
	if err := checkLabels(e.Labels); err != nil {
		return bare(err)
	}
	fits = e
	if e.Name != "" {
		if err := CheckName(e.Names()[0]); err != nil { // the first name is the longest one
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
		left = append(left, fmt.Sprintf("%d named ports (at most %d are allowed)", many, maxPorts))
	}
	return fits, left
}
