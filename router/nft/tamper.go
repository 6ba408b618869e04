package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// removals are the types of messages about removed or replaced parts of a table.
var removals = []int{
	unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM,
}

// Removed calls f whenever any program has removed something from our table, until ctx ends. Before
// Linux 6.9 other programs can remove rules, and the guard must be restored at once. f must not
// block.
func Removed(ctx context.Context, f func()) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("opening netlink for nftables events: %w", err)
	}
	defer conn.Close()
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("subscribing to nftables events: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })()
	for ctx.Err() == nil {
		messages, err := conn.Receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, unix.ENOBUFS): // messages were lost, perhaps about our table
			f()
		case err != nil:
			return fmt.Errorf("receiving nftables events: %w", err)
		case slices.ContainsFunc(messages, fromOurs):
			f()
		}
	}
	return nil
}

// fromOurs reports whether a message is about a removal from our table. All these messages have the
// table's name as first attribute.
func fromOurs(m netlink.Message) bool {
	if int(m.Header.Type)>>8 != unix.NFNL_SUBSYS_NFTABLES || !slices.Contains(removals, int(m.Header.Type)&0xff) || len(m.Data) < 4 {
		return false
	}
	attrs, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return false
	}
	for attrs.Next() {
		if attrs.Type() == unix.NFTA_TABLE_NAME {
			return attrs.String() == TableName
		}
	}
	return false
}
