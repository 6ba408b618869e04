package view

import (
	"fmt"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/prog/api"
)

// FindPeer finds a peer by its id, or by its nickname if no other peer has the same.
func FindPeer(peers []mesh.Peer, name string) (found peer.ID, err error) {
	if id, err := peer.ParseID(name); err == nil {
		return id, nil // also for a peer whose record was lost
	}
	for _, p := range peers {
		if p.Record.Identity == nil || p.Record.Nickname != name || p.Record.State == peer.Left {
			continue
		}
		if !found.IsZero() {
			return found, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("several peers are called %s: give the id (`weft status peers`)", name)}
		}
		found = p.Record.ID()
	}
	if found.IsZero() {
		return found, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("no peer has the id or the nickname %s (`weft status peers` lists them)", name)}
	}
	return found, nil
}
