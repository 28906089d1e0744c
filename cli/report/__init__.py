"""The verb `report`: what runs came to, from their journals and from what managers left in a store."""
