package directory

import (
	"fmt"
	"maps"
	"slices"
)

// Fit is the endpoint without those of its names, labels and ports that are out of bounds, and
// says which that are. What others accept must get a network: a bound of the directory costs
// what is out of it, never the endpoint. An id, a namespace or a slot is not left out: without
// it the endpoint would be another one.
func (e Endpoint) Fit() (fits Endpoint, left []string) {
	fits = e
	if e.Name != "" {
		if err := CheckName(e.Names()[0]); err != nil { // the longest
			fits.Name = ""
			left = append(left, fmt.Sprintf("its DNS name (%v)", err))
		}
	}
	fits.Labels, left = fitLabels(e.Labels, left)
	fits.Ports, left = fitPorts(e.Ports, left)
	return fits, left
}

// fitLabels keeps as many labels as fit, in the order of their keys.
func fitLabels(labels map[string]string, left []string) (map[string]string, []string) {
	out, size, many := map[string]string{}, 0, 0
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		v := labels[k]
		switch err := CheckLabel(k, v); {
		case err != nil:
			left = append(left, err.Error())
		case len(out) == maxLabels || size+len(k)+len(v) > maxLabelsAll:
			many++
		default:
			out[k] = v
			size += len(k) + len(v)
		}
	}
	if len(out) == len(labels) {
		return labels, left
	}
	if many > 0 {
		left = append(left, fmt.Sprintf("%d labels (at most %d fit, of %d bytes together): policies of other hosts do not see these", many, maxLabels, maxLabelsAll))
	}
	return out, left
}

// fitPorts keeps the ports that fit, in their order.
func fitPorts(ports []Port, left []string) ([]Port, []string) {
	var out []Port
	many := 0
	for _, p := range ports {
		switch err := p.Check(); {
		case err != nil:
			left = append(left, err.Error())
		case len(out) == maxPorts:
			many++
		default:
			out = append(out, p)
		}
	}
	if many > 0 {
		left = append(left, fmt.Sprintf("%d ports with a name (at most %d fit)", many, maxPorts))
	}
	return out, left
}
