package state

import "slices"

var keySysctls = []byte("sysctls")

// Sysctl is a value below /proc/sys/net that Weft changed, so that weft reset can restore it.
type Sysctl struct {
	Name string `json:"name"` // ipv4/ip_forward
	Was  string `json:"was"`
	Set  string `json:"set"`
}

// Sysctls returns the changed values, in the order of the changes.
func (s *Store) Sysctls() (list []Sysctl, err error) {
	_, err = s.load(keySysctls, &list)
	return list, err
}

// SaveSysctl stores the value of a sysctl before its first change.
func (s *Store) SaveSysctl(name, was, set string) error {
	list, err := s.Sysctls()
	if err != nil || slices.ContainsFunc(list, func(c Sysctl) bool { return c.Name == name }) {
		return err
	}
	return s.save(keySysctls, append(list, Sysctl{name, was, set}))
}
