package state

import (
	"encoding/json"
	"slices"

	bolt "go.etcd.io/bbolt"
)

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

// SaveSysctl stores the value of a sysctl before its first change. Several components change sysctls at
// the same time, so it reads and writes the list in one transaction.
func (s *Store) SaveSysctl(name, was, set string) error {
	list, err := s.Sysctls() // without a transaction that writes: nearly always the value is stored already
	has := func() bool { return slices.ContainsFunc(list, func(c Sysctl) bool { return c.Name == name }) }
	if err != nil || has() {
		return err
	}
	return s.update(func(tx *bolt.Tx) error {
		list = nil
		b := tx.Bucket(bucketMeta)
		if data := b.Get(keySysctls); data != nil {
			if err := json.Unmarshal(data, &list); err != nil {
				return err
			}
		}
		if has() {
			return nil
		}
		data, err := json.Marshal(append(list, Sysctl{name, was, set}))
		if err != nil {
			return err
		}
		return b.Put(keySysctls, data)
	})
}
