package state

import (
	"encoding/json"

	bolt "go.etcd.io/bbolt"

	"weft/mesh/peer"
)

// Sets returns the endpoints of all peers that SaveSets stored.
func (s *Store) Sets() ([][]byte, error) { return s.values(bucketDirectory) }

// SaveSets stores sets of endpoints by owner; nil deletes the owner's set.
func (s *Store) SaveSets(sets map[peer.ID][]byte) error {
	return s.saveValues(bucketDirectory, byKey(sets))
}

func byKey(values map[peer.ID][]byte) map[string][]byte {
	out := make(map[string][]byte, len(values))
	for id, data := range values {
		out[string(id[:])] = data
	}
	return out
}

// Documents returns the documents that SaveDocuments stored.
func (s *Store) Documents() ([][]byte, error) { return s.values(bucketDocuments) }

// SaveDocuments stores documents by key, all or none; nil deletes the document with that key.
func (s *Store) SaveDocuments(documents map[string][]byte) error {
	return s.saveValues(bucketDocuments, documents)
}

func (s *Store) saveValues(bucket []byte, values map[string][]byte) error {
	return s.update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucket)
		if err != nil {
			return err
		}
		for key, data := range values {
			if data == nil {
				err = b.Delete([]byte(key))
			} else {
				err = b.Put([]byte(key), data)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Synced reports whether SaveSynced was called.
func (s *Store) Synced() (synced bool, err error) {
	_, err = s.load(keySynced, &synced)
	return synced, err
}

// SaveSynced stores that this host has received all documents of the mesh once.
func (s *Store) SaveSynced() error { return s.save(keySynced, true) }

// Pairs returns the pre-shared keys of tunnels to peers, by the peers' ids.
func (s *Store) Pairs() (keys map[string][]byte, err error) {
	_, err = s.load(keyPairs, &keys)
	return keys, err
}

// SavePairs stores the pre-shared keys of tunnels to peers.
func (s *Store) SavePairs(keys map[string][]byte) error { return s.save(keyPairs, keys) }

// Relays loads what SaveRelays stored into v, which stays as it is if there is nothing.
func (s *Store) Relays(v any) error {
	_, err := s.load(keyRelays, v)
	return err
}

// SaveRelays stores the ways of this host's tunnels over relays, and the hosts for which this host is a relay.
func (s *Store) SaveRelays(v any) error { return s.save(keyRelays, v) }

// Kubernetes returns what SaveKubernetes stored, or nil.
func (s *Store) Kubernetes() (data json.RawMessage, err error) {
	_, err = s.load(keyKubernetes, &data)
	return data, err
}

// SaveKubernetes stores the last answers of the API server.
func (s *Store) SaveKubernetes(data []byte) error {
	return s.save(keyKubernetes, json.RawMessage(data))
}
